//! Two homings for a while, or more: one that was replaced serves what is open with it, and tells its successors of that.

use std::collections::HashMap;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};

use super::doors::Doors;
use super::runner::{Kernel, Runner};
use super::state::Phase;
use crate::admin;
use crate::admin::report::{Bound, Handover, Loads, OpenDoor};
use crate::admin::server::Request;
use crate::routing::Load;

/// What the socket of one that was replaced is called, around its process id.
const SOCKET: &str = "predecessor-";
const SOCKET_END: &str = ".sock";
/// Between the successor's questions.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Questions without an answer in a row after which it has ended.
const SILENCE_MAX: u32 = 6;

/// What is left of a homing that was replaced.
pub struct Predecessor {
    doors: Doors,
    requests: mpsc::Receiver<Request>,
    requesters: mpsc::Sender<Request>,
    loads: Vec<(u64, Arc<Load>)>,
    /// Answers who asked before.
    metrics: JoinHandle<()>,
    socket: PathBuf,
    /// What is still open then is broken off.
    patience: Duration,
}

impl Runner {
    pub(super) fn handover(&self) -> Handover {
        let sockets = self.doors.sockets().chain(self.metrics.socket());
        let doors = sockets.map(|(address, fd)| OpenDoor { address, fd }).collect();
        let pin_dir = matches!(self.kernel, Kernel::On(_)).then(|| self.config.homing.pin_dir.clone());
        Handover { pid: std::process::id(), doors, predecessor: self.predecessor_socket(), pin_dir }
    }

    fn predecessor_socket(&self) -> PathBuf {
        self.config.homing.state_dir.join(format!("{SOCKET}{}{SOCKET_END}", std::process::id()))
    }

    /// Why this is no moment to be replaced: what starts would be started again, and who waits would wait in vain.
    pub(super) fn busy(&self) -> Option<String> {
        let is_starting = |phase: &Phase| matches!(phase, Phase::Starting { .. } | Phase::Queued);
        let workers = || self.state.apps.iter().flat_map(|app| &app.workers);
        let starting = workers().filter(|worker| is_starting(&worker.phase)).count();
        let held: usize = self.state.apps.iter().map(|app| self.proxy.held(app.spec.id)).sum();
        let restarting = self.state.apps.iter().any(|app| app.restarting.is_some());
        (starting + held > 0 || restarting || self.state.stopping)
            .then(|| format!("{starting} workers are starting, {held} requests wait"))
    }

    /// What is in no table of the kernel, where the successor finds it by itself.
    pub(super) async fn bound(&self) -> Bound {
        if matches!(self.kernel, Kernel::On(_)) {
            return Bound::default();
        }
        let bindings = Arc::clone(&self.bindings);
        // There may be many, and who is served meanwhile does not wait for it.
        tokio::task::spawn_blocking(move || Bound::of(&*bindings)).await.unwrap_or_default()
    }

    /// It decides nothing any more: workers, tables and files are its successor's.
    pub(super) fn yielded(self, requesters: mpsc::Sender<Request>) -> Predecessor {
        let socket = self.predecessor_socket();
        let patience = self.config.apps.iter().map(|app| app.timeouts.drain).max().unwrap_or_default();
        let processes = self.running.values().map(|running| (running.incarnation, Arc::clone(&running.load)));
        let loads = processes.collect();
        let Self { mut doors, requests, metrics, .. } = self;
        doors.keep(|_| false);
        let metrics = tokio::spawn(metrics.end());
        Predecessor { doors, requests, requesters, loads, metrics, socket, patience }
    }
}

impl Predecessor {
    /// Until the last connection has ended, or must.
    ///
    /// # Errors
    /// When the kernel gives no signals.
    pub async fn serve_out(self) -> anyhow::Result<()> {
        let Self { mut doors, mut requests, requesters, loads, metrics, socket, patience } = self;
        let listener = admin::server::bind(&socket).and_then(tokio::net::UnixListener::from_std);
        let answering = match listener {
            Ok(listener) => Some(tokio::spawn(admin::server::serve(listener, requesters, pending())).abort_handle()),
            Err(error) => {
                tracing::warn!(%error, "the successor is not told what is still open here");
                None
            }
        };
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let deadline = tokio::time::Instant::now() + patience;
        tracing::info!("replaced: serving what is open until it ends, {} s at most", patience.as_secs());
        loop {
            tokio::select! {
                () = doors.empty() => break,
                () = tokio::time::sleep_until(deadline) => break,
                Some(()) = terminate.recv() => break,
                Some(()) = interrupt.recv() => break,
                // Whoever asks anything else is told that homing is ending.
                Some(request) = requests.recv() => if let Request::Loads(answer) = request {
                    let open = |load: &Load| load.open.count();
                    let loads = loads.iter().map(|(incarnation, load)| (*incarnation, open(load))).collect();
                    drop(answer.send(Loads { loads }));
                },
            }
        }
        doors.end().await;
        // Who asks now is told at once.
        drop(requests);
        let _ = metrics.await;
        answering.inspect(AbortHandle::abort);
        let _ = std::fs::remove_file(&socket);
        Ok(())
    }
}

/// The sockets of those that were replaced.
fn sockets(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(SOCKET) && name.ends_with(SOCKET_END))
    })
}

/// What homings that were replaced still serve, by incarnation of the worker.
#[derive(Clone, Default)]
pub(super) struct Elsewhere(Arc<Mutex<HashMap<u64, u32>>>);

/// One of them.
#[derive(Default)]
struct Asked {
    loads: Vec<(u64, u32)>,
    /// Questions without an answer since the last one.
    silent: u32,
}

impl Elsewhere {
    /// Asks all who say in this directory what they serve, until they have ended: there are several where homing was replaced
    /// again before the first one had. `next` is about to be there.
    pub(super) fn watch(dir: &Path, next: Option<PathBuf>) -> Self {
        let elsewhere = Self::default();
        let told = elsewhere.clone();
        let all = sockets(dir).chain(next).map(|socket| (socket, Asked::default()));
        let mut all: HashMap<PathBuf, Asked> = all.collect();
        tokio::spawn(async move {
            while !all.is_empty() {
                for (socket, asked) in &mut all {
                    match admin::client::get::<Loads>(socket, "/v1/loads").await {
                        Ok(Loads { loads }) => *asked = Asked { loads, silent: 0 },
                        Err(_) => asked.silent += 1,
                    }
                }
                all.retain(|socket, asked| {
                    let is_there = asked.silent < SILENCE_MAX;
                    if !is_there {
                        // One that was killed has left it.
                        let _ = std::fs::remove_file(socket);
                    }
                    is_there
                });
                let mut sums = HashMap::new();
                for &(incarnation, open) in all.values().flat_map(|asked| &asked.loads) {
                    *sums.entry(incarnation).or_default() += open;
                }
                *told.table() = sums;
                tokio::time::sleep(ASK_AGAIN).await;
            }
        });
        elsewhere
    }

    pub(super) fn open(&self, incarnation: u64) -> u32 {
        self.table().get(&incarnation).copied().unwrap_or(0)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<u64, u32>> {
        // A panic cannot leave the map half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
