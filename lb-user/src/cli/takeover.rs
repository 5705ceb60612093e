//! `homing run --replace`: the running homing hands over what it holds, and serves what is open until it ends.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use crate::admin::client::{self, AskError};
use crate::admin::report::{Bound, Handover};
use crate::config::{Homing, KernelPath};

/// Between questions whether it may be now.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// A homing in which something starts or waits all the time yields after this, too.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the running homing would hand over.
pub(super) struct Takeover {
    control_socket: PathBuf,
    /// Where it says what it still serves.
    pub(super) predecessor: PathBuf,
    listeners: HashMap<SocketAddr, TcpListener>,
    /// Where its kernel path is pinned, if it has one.
    pin_dir: Option<PathBuf>,
}

impl Takeover {
    /// `None`: no homing runs there. Nothing has changed for it yet.
    ///
    /// # Errors
    /// When it runs and its sockets cannot be had.
    pub(super) async fn ask(control_socket: &Path) -> anyhow::Result<Option<Self>> {
        let handover: Handover = match client::get(control_socket, "/v1/handover").await {
            Ok(handover) => handover,
            Err(AskError::Unreachable { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let listeners = duplicates(&handover).with_context(|| {
            format!(
                "cannot take the listening sockets of the running homing (pid {}): that needs root or CAP_SYS_PTRACE; it goes \
                 on as it was",
                handover.pid
            )
        })?;
        let Handover { predecessor, pin_dir, .. } = handover;
        Ok(Some(Self { control_socket: control_socket.to_owned(), predecessor, listeners, pin_dir }))
    }

    /// Connections that the kernel has handed out are counted in its tables alone.
    ///
    /// # Errors
    /// When the successor would be without them.
    pub(super) fn check(&self, homing: &Homing) -> anyhow::Result<()> {
        match &self.pin_dir {
            Some(pin_dir) if homing.kernel_path == KernelPath::Off || homing.pin_dir != *pin_dir => Err(anyhow!(
                "the running homing has handed out connections by the kernel path pinned in {}, which this one would not \
                 count; leave homing.kernel_path and pin_dir as they are, or stop homing and start it again. It goes on as \
                 it was",
                pin_dir.display()
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn listener(&mut self, address: SocketAddr) -> Option<TcpListener> {
        self.listeners.remove(&address)
    }

    /// From now on it decides nothing any more. Waits for a moment in which it starts nothing and nobody waits in it. What
    /// it remembers of clients, where no table of the kernel does.
    ///
    /// # Errors
    /// When it does not yield.
    pub(super) async fn end_its_reign(&self) -> anyhow::Result<Bound> {
        let begun = tokio::time::Instant::now();
        loop {
            let path = if begun.elapsed() < PATIENCE { "/v1/yield" } else { "/v1/yield?force=true" };
            match client::post_for(&self.control_socket, path).await {
                Ok(bound) => return Ok(bound),
                Err(AskError::Refused(why)) if begun.elapsed() < PATIENCE => tracing::debug!(%why, "not yet"),
                Err(error) => return Err(anyhow!("the running homing does not yield: {error}")),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}

fn duplicates(handover: &Handover) -> io::Result<HashMap<SocketAddr, TcpListener>> {
    let pid = i32::try_from(handover.pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let take = |(address, number): (&SocketAddr, &i32)| {
        let socket = rustix::process::pidfd_getfd(&pidfd, *number, PidfdGetfdFlags::empty())?;
        Ok((*address, TcpListener::from(socket)))
    };
    handover.doors.iter().map(|door| take((&door.address, &door.fd))).collect()
}
