//! Listeners: accepting, and the end of it.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{interval, sleep};

use super::counters::Counter;
use super::limits::{ACCEPT_PAUSE, CONNECTIONS_MAX, POOL_SWEEP};
use super::serve::Settings;
use super::welcome::{Arrival, welcome};
use super::{Inner, Listener, Shutdown};

/// Serves a listener until it is shut down and its last connection and tunnel are gone.
pub async fn serve(proxy: Arc<Inner>, listener: Listener, mut shutdown: watch::Receiver<Shutdown>) -> io::Result<()> {
    let address = listener.address;
    listener.socket.set_nonblocking(true)?;
    let socket = TcpListener::from_std(listener.socket)?;
    let settings = Arc::new(Settings::new());
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut sweep = interval(POOL_SWEEP);
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
                Err(error) => refused_accept(&error).await,
            },
            _ = sweep.tick() => {
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

/// Why `accept` failed decides whether it pays to go on at once.
async fn refused_accept(error: &io::Error) {
    let of_one_client = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
    if of_one_client.contains(&error.kind()) {
        return;
    }
    if may_warn() {
        tracing::warn!(%error, "cannot accept connections: raise the limit of open files (LimitNOFILE) if it is that");
    }
    sleep(ACCEPT_PAUSE).await;
}

/// At most one warning in [`WARNING_PAUSE`] failures: they come ten a second.
fn may_warn() -> bool {
    static FAILURES: AtomicUsize = AtomicUsize::new(0);
    FAILURES.fetch_add(1, Ordering::Relaxed).is_multiple_of(WARNING_PAUSE)
}

/// Failures of `accept` per warning: one a minute.
const WARNING_PAUSE: usize = (Duration::from_secs(60).as_millis() / ACCEPT_PAUSE.as_millis()) as usize;
