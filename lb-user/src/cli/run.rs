//! `homing run`: everything is opened, locked and bound before anything is started, so that an error leaves nothing
//! half-started behind; and by one thread, so that what only this needs can be given up before there are others.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use sd_notify::NotifyState;
use tokio::sync::{mpsc, oneshot, watch};

use super::takeover::Takeover;
use super::{DONE, FAILED, USAGE, fail};
use crate::admin;
use crate::admin::report::Bound;
use crate::bindings::MemoryBindings;
use crate::config::{self, Config, Forward, KernelPath};
use crate::control::doors;
use crate::control::runner::{Ended, Kernel, Parts, Runner};
use crate::datapath::{self, Datapath};
use crate::metrics::{Metrics, Sources};
use crate::privileges;
use crate::proxy::{CookieKeys, Proxy};
use crate::routing::{Bindings, RoutingHandle, Snapshot};

/// Requests for workers under way to control; more than that many at once say nothing new.
const NOTICES_MAX: usize = 1_024;
/// Questions on the control socket waiting for control.
const REQUESTS_MAX: usize = 64;

/// `replace`: takes over from a homing that runs already. `guarded_by`: what systemd takes for the service's main process.
pub(super) fn run(path: &Path, replace: bool, guarded_by: Option<u32>) -> u8 {
    let config = match config::file::load(path) {
        Ok(config) => config,
        Err(errors) => {
            eprint!("{errors}");
            return USAGE;
        }
    };
    log_to_stderr("info");
    // Not `eprintln!`, which panics where nobody listens.
    let ready = |line: &str| drop(writeln!(io::stderr(), "{line}"));
    match serve(Some(path.to_owned()), config, replace, guarded_by, ready) {
        Ok(()) => DONE,
        Err(error) => fail(FAILED, &format!("{error:#}")),
    }
}

/// Logs of `HOMING_LOG`, or else of this level, to stderr; coloured on a terminal unless `NO_COLOR` is set.
pub(super) fn log_to_stderr(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HOMING_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let colour = io::stderr().is_terminal() && super::wants_colour();
    // A second subscriber, in a test, keeps the first.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_target(false)
        // Who reads the log may go away; homing does not go with it.
        .log_internal_errors(false)
        .with_writer(io::stderr)
        .try_init();
}

/// Serves a configuration until it is told to stop. `file`: where it can be read again. `replace`: takes over from a
/// homing that runs already. `ready` gets the one line that says so.
pub(super) fn serve(
    file: Option<PathBuf>,
    config: Config,
    replace: bool,
    guarded_by: Option<u32>,
    ready: impl FnOnce(&str),
) -> anyhow::Result<()> {
    let opening = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let opened = opening.block_on(open(&config, replace))?;
    drop(opening);
    privileges::give_up(&config).context("cannot give up the privileges that are not needed any more")?;
    super::block_on(go_on(opened, file, config, guarded_by, ready))
}

/// What a homing has in its hands before it serves.
struct Opened {
    /// As long as it is held no other one runs here.
    held: fs::File,
    listeners: Vec<(SocketAddr, TcpListener)>,
    metrics_listener: Option<TcpListener>,
    keys: CookieKeys,
    bound: Bound,
    socket: UnixListener,
    socket_file: Remove,
    predecessor: Option<PathBuf>,
    kernel: Kernel,
}

async fn open(config: &Config, replace: bool) -> anyhow::Result<Opened> {
    let homing = &config.homing;
    make_dir(&homing.state_dir, "state_dir", 0o700)?;
    make_dir(&homing.log_dir, "log_dir", 0o750)?;
    let mut takeover = if replace { Takeover::ask(&homing.control_socket).await? } else { None };
    // All that can go wrong goes wrong before the other homing yields.
    let held = if takeover.is_some() { None } else { Some(lock(&homing.state_dir)?) };
    takeover.as_ref().map_or(Ok(()), |takeover| takeover.check(homing))?;
    let listeners = listeners(config, takeover.as_mut())?;
    let metrics_listener = metrics_listener(homing, takeover.as_mut())?;
    let keys = CookieKeys::load_or_create(&homing.state_dir)?;
    let bound = match &takeover {
        Some(takeover) => takeover.end_its_reign().await?,
        None => Bound::default(),
    };
    let held = match held {
        Some(held) => held,
        None => until_free(|| lock(&homing.state_dir)).await?,
    };
    let bind = || admin::server::bind(&homing.control_socket);
    let socket = if takeover.is_some() { until_free(bind).await } else { bind() };
    let socket = socket.with_context(|| {
        format!("cannot listen on the control socket {}; set homing.control_socket", homing.control_socket.display())
    })?;
    let socket_file = Remove(homing.control_socket.clone());
    let predecessor = takeover.map(|takeover| takeover.predecessor);
    let kernel = open_kernel(config)?;
    Ok(Opened { held, listeners, metrics_listener, keys, bound, socket, socket_file, predecessor, kernel })
}

async fn go_on(
    opened: Opened,
    file: Option<PathBuf>,
    config: Config,
    guarded_by: Option<u32>,
    ready: impl FnOnce(&str),
) -> anyhow::Result<()> {
    let Opened { held, listeners, metrics_listener, keys, bound, socket, socket_file, predecessor, kernel } = opened;
    let bindings: Arc<dyn Bindings> = match &kernel {
        Kernel::On(datapath) => datapath.bindings(),
        Kernel::Off { .. } => Arc::new(MemoryBindings::new()),
    };
    bound.inherit(&*bindings);

    let (snapshots, snapshot_receiver) = watch::channel(Arc::new(Snapshot::default()));
    let (notice_sender, notices) = mpsc::channel(NOTICES_MAX);
    let (request_sender, requests) = mpsc::channel(REQUESTS_MAX);
    let routing =
        RoutingHandle { snapshots: snapshot_receiver, notices: notice_sender, bindings: Arc::clone(&bindings) };
    let access_log = config.homing.access_log.as_ref();
    let proxy = Proxy::new(routing, keys.clone(), access_log, config.homing.traces.as_ref()).with_context(|| {
        let path = access_log.map(|log| log.path.display().to_string()).unwrap_or_default();
        format!("cannot write the access log {path}; set homing.access_log, or make its directory writable")
    })?;
    let line = ready_line(&config, &kernel);
    let metrics = Metrics::new(Sources { requests: request_sender.clone(), snapshots: snapshots.subscribe() });
    let traced = proxy.clone();
    let runner = Runner::start(Parts {
        file,
        config,
        keys,
        kernel,
        bindings,
        snapshots,
        notices,
        requests,
        proxy,
        listeners,
        predecessor,
        metrics,
        metrics_listener,
    })?;

    let socket = tokio::net::UnixListener::from_std(socket).context("cannot answer on the control socket")?;
    let (end, ended) = oneshot::channel::<()>();
    let answering = tokio::spawn(admin::server::serve(socket, request_sender.clone(), async { drop(ended.await) }));
    ready(&line);
    // Also the process, since another one may have been the service's until now.
    tell_systemd(&[NotifyState::Ready, NotifyState::MainPid(guarded_by.unwrap_or_else(std::process::id))]);
    let ended = runner.run(request_sender).await;
    drop(end);
    let ended = match ended? {
        Ended::Stopped => Ok(()),
        Ended::Replaced(predecessor) => {
            // Both are the successor's now.
            std::mem::forget(socket_file);
            drop(held);
            predecessor.serve_out().await
        }
    };
    tokio::task::spawn_blocking(move || traced.finish()).await?;
    // Who gave the last order has not read the answer yet, perhaps; a successor waits for it.
    let _ = tokio::time::timeout(LAST_ANSWERS, answering).await;
    ended
}

/// What who asked before the end may take to read the answer.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Tries again for a while: a homing that has just yielded lets go of one thing after the other.
async fn until_free<T, E>(take: impl Fn() -> Result<T, E>) -> Result<T, E> {
    const TRIES: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(50);
    for _ in 1..TRIES {
        match take() {
            Ok(taken) => return Ok(taken),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    take()
}

/// Where homing is a unit of `Type=notify`.
fn tell_systemd(news: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(news) {
        tracing::warn!(%error, "systemd was not told; a unit of Type=notify needs NotifyAccess=all for --replace");
    }
}

/// A file that goes when this goes.
struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// One that is there keeps its mode: it may hold more than homing's files.
fn make_dir(path: &Path, key: &str, mode: u32) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("cannot make {}; run homing as root or set homing.{key}", path.display()))
}

/// Held while homing runs: two homings on one state directory would fight over workers and pins.
fn lock(state_dir: &Path) -> anyhow::Result<fs::File> {
    let path = state_dir.join("lock");
    let mut file =
        fs::OpenOptions::new().create(true).mode(0o600).truncate(false).read(true).write(true).open(&path)?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let holder = fs::read_to_string(&path).unwrap_or_default();
        return Err(anyhow!(
            "another homing (pid {}) runs with state_dir {}; stop it with: homing stop, take over from it with: homing run --replace, or give this one a state_dir of its own",
            holder.trim(),
            state_dir.display()
        ));
    }
    // For the message above, which can do without on a full disk.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// One for each listen address: what the other homing has, or new ones.
fn listeners(config: &Config, mut takeover: Option<&mut Takeover>) -> anyhow::Result<Vec<(SocketAddr, TcpListener)>> {
    let mut listener = |(app, address): (&str, SocketAddr)| {
        let taken = takeover.as_mut().and_then(|takeover| takeover.listener(address));
        let socket = taken.map_or_else(|| doors::bind(app, address).map_err(|error| anyhow!(error)), Ok)?;
        Ok((address, socket))
    };
    doors::addresses(&config.apps).map(&mut listener).collect()
}

fn metrics_listener(homing: &config::Homing, takeover: Option<&mut Takeover>) -> anyhow::Result<Option<TcpListener>> {
    let Some(metrics) = &homing.metrics else { return Ok(None) };
    match takeover.and_then(|takeover| takeover.listener(metrics.address)) {
        Some(taken) => Ok(Some(taken)),
        None => doors::bind_for_metrics(metrics.address).map(Some).map_err(|error| anyhow!(error)),
    }
}

/// Opens the kernel path as the configuration wants it.
fn open_kernel(config: &Config) -> anyhow::Result<Kernel> {
    let homing = &config.homing;
    if homing.kernel_path == KernelPath::Off {
        return Ok(Kernel::Off { reason: "kernel_path = \"off\" in the configuration".to_owned() });
    }
    let interfaces = datapath::interfaces(config).context("cannot list this machine's addresses")?;
    match Datapath::open(&homing.pin_dir, &interfaces, datapath::Sizes::of(config)) {
        Ok(datapath) => {
            let is_direct = |app: &config::App| app.backends.iter().any(|backend| backend.forward != Forward::Http);
            if config.apps.iter().any(is_direct) {
                datapath::allow_route_lookups().context(
                    "cannot let the kernel answer questions for routes (net.ipv4.conf.lo.forwarding and its like for IPv6)",
                )?;
            }
            for attached in datapath.attached().iter().filter(|attached| attached.mode == datapath::Mode::None) {
                attached.say();
            }
            datapath::say_other_lookups(&datapath.other_lookups());
            Ok(Kernel::On(Box::new(datapath)))
        }
        Err(error) if homing.kernel_path == KernelPath::Preferred => {
            tracing::warn!("no kernel path, serving on the HTTP path alone: {error}");
            Ok(Kernel::Off { reason: error.to_string() })
        }
        Err(error) => Err(anyhow!("kernel_path = \"required\", but {error}")),
    }
}

fn ready_line(config: &Config, kernel: &Kernel) -> String {
    let listen: Vec<String> = config
        .apps
        .iter()
        .flat_map(|app| app.listen.iter().map(move |address| format!("{} on {address}", app.name)))
        .collect();
    let path = if matches!(kernel, Kernel::On(_)) { "kernel path active" } else { "HTTP path alone" };
    format!("homing: ready ({path}): {}", listen.join(", "))
}
