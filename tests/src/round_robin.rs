//! No affinity at all: each connection to the next worker. It proves that a sticky test can fail.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

/// Listens on a loopback port of its own until the test's runtime ends.
pub async fn start(workers: Vec<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        for worker in workers.iter().cycle() {
            let Ok((mut client, _)) = listener.accept().await else { return };
            let worker = *worker;
            tokio::spawn(async move {
                if let Ok(mut worker) = TcpStream::connect(worker).await {
                    // Either side may go away at any time.
                    let _ = copy_bidirectional(&mut client, &mut worker).await;
                }
            });
        }
    });
    address
}
