//! Listeners: accepting, and the end of it.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{interval, sleep};

use super::counters::Counter;
use super::limits::{ACCEPT_PAUSE, CONNECTIONS_MAX, POOL_SWEEP};
use super::serve::Settings;
use super::welcome::{Arrival, welcome};
use super::{Inner, Listener, Shutdown};
use crate::trouble::Trouble;

/// Serves a listener until it is shut down and its last connection and tunnel are gone.
pub async fn serve(proxy: Arc<Inner>, listener: Listener, mut shutdown: watch::Receiver<Shutdown>) -> io::Result<()> {
    let address = listener.address;
    listener.socket.set_nonblocking(true)?;
    let socket = TcpListener::from_std(listener.socket)?;
    let settings = Arc::new(Settings::new());
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut sweep = interval(POOL_SWEEP);
    // Over when a whole pause between two sweeps was without it: at the very limit some connections are accepted.
    let (mut trouble, mut has_failed) = (Trouble::default(), false);
    let mut told = shutdown.clone();
    let mut leaving = pin!(leaving(&mut told));
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
            (socket.accept().await, permit)
        };
        tokio::select! {
            (accepted, permit) = accepted => match accepted {
                Ok((stream, peer)) => {
                    proxy.counters.add(Counter::Connections);
                    let arrival = Arrival { stream, peer, address, shutdown: shutdown.clone(), permit };
                    tokio::spawn(welcome(Arc::clone(&proxy), Arc::clone(&settings), arrival));
                }
                Err(error) if is_of_one_client(&error) => {}
                Err(error) => {
                    proxy.counters.add(Counter::NoDescriptors);
                    has_failed = true;
                    if trouble.is_news(Instant::now()) {
                        tracing::warn!(
                            %error, %address,
                            "cannot accept connections: raise the limit of open files (LimitNOFILE) if it is that"
                        );
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            _ = sweep.tick() => {
                if !std::mem::take(&mut has_failed) && trouble.is_over() {
                    tracing::info!(%address, "connections are accepted again");
                }
                let snapshot = Arc::clone(&proxy.routing.snapshots.borrow());
                proxy.upstreams.sweep(&snapshot);
            }
            () = &mut leaving => break,
        }
    }
    // From here on the kernel refuses new clients, unless control keeps the socket for a successor.
    drop(socket);
    tokio::select! {
        _ = permits.acquire_many(CONNECTIONS_MAX as u32) => {}
        () = stopped(&mut shutdown) => {}
    }
    Ok(())
}

/// Completes when nothing new is wanted.
pub async fn leaving(shutdown: &mut watch::Receiver<Shutdown>) {
    // An error: whoever could tell us is gone, and so is the service.
    drop(shutdown.wait_for(|state| *state != Shutdown::Serving).await);
}

/// Completes when everything must end.
pub async fn stopped(shutdown: &mut watch::Receiver<Shutdown>) {
    drop(shutdown.wait_for(|state| *state == Shutdown::Now).await);
}

/// Whether `accept` failed for the one that it was to be: nothing is wrong with the next.
fn is_of_one_client(error: &io::Error) -> bool {
    [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted]
        .contains(&error.kind())
}
