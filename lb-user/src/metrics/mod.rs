//! Metrics and the dashboard, on a listener of their own: what control reports and the HTTP path times, for Prometheus and for
//! people.
//!
//! It asks control as `homing status` does and follows the snapshot that control publishes; it decides nothing. Whoever asks
//! much or reads slowly takes places here, not control's time.

mod access;
mod answer;
mod families;
mod history;
mod page;
mod process;
mod render;
mod serve;
#[cfg(test)]
mod shipped;
mod text;
mod token;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::admin::server::Request;
use crate::config;
use crate::routing::Snapshot;

pub use render::names;
pub use token::Token;

/// What the listener is told of the rest of homing. Cheap to clone.
#[derive(Clone)]
pub struct Sources {
    pub requests: mpsc::Sender<Request>,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// The listener, where there is one. Dropped, it takes nobody any more.
pub struct Metrics {
    sources: Sources,
    open: Option<Open>,
}

struct Open {
    /// Who may ask what, as it is configured now. With it the listener ends.
    settings: watch::Sender<config::Metrics>,
    /// The listener's twin, for a successor.
    socket: TcpListener,
    serving: JoinHandle<()>,
}

/// For who is being answered while a successor takes over.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

impl Metrics {
    pub fn new(sources: Sources) -> Self {
        Self { sources, open: None }
    }

    /// Whether it listens there.
    pub fn is_on(&self, address: SocketAddr) -> bool {
        self.open.as_ref().is_some_and(|open| open.settings.borrow().address == address)
    }

    /// Is from now on as it is configured. `socket`: bound to the address, if it is not on it already.
    ///
    /// # Errors
    /// When the process may not have another file.
    pub fn configure(&mut self, wanted: Option<&config::Metrics>, socket: Option<TcpListener>) -> std::io::Result<()> {
        let Some(wanted) = wanted else {
            self.open = None;
            return Ok(());
        };
        if let Some(open) = self.open.as_ref().filter(|_| self.is_on(wanted.address)) {
            open.settings.send_replace(wanted.clone());
            return Ok(());
        }
        let socket = socket.ok_or_else(|| std::io::Error::other(format!("{} has not been bound", wanted.address)))?;
        let served = tokio::net::TcpListener::from_std(socket.try_clone()?)?;
        let settings = watch::Sender::new(wanted.clone());
        let serving = tokio::spawn(serve::serve(served, self.sources.clone(), settings.subscribe()));
        self.open = Some(Open { settings, socket, serving });
        Ok(())
    }

    /// Takes nobody any more, and answers who is there.
    pub async fn end(self) {
        let Some(Open { settings, socket, serving }) = self.open else { return };
        drop((settings, socket));
        let _ = tokio::time::timeout(LAST_ANSWERS, serving).await;
    }

    /// The listening socket, by its number in this process.
    pub fn socket(&self) -> Option<(SocketAddr, i32)> {
        self.open.as_ref().map(|open| (open.settings.borrow().address, open.socket.as_raw_fd()))
    }
}
