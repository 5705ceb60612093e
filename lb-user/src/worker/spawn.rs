//! Starting a worker: its arguments, its environment, its user, its log, and a session of its own by which all its
//! processes can be found later. A worker is meant to outlive homing, so nothing ties the two together but ids.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::User;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::account::{self, AccountError};
use super::cgroup::Group;
use super::entrance::Entrance;
use super::limits;
use super::process::Kin;
use super::procfs::Stat;
use super::program::{self, ProgramError};
use super::socket;
use crate::address::Address;
use crate::config::Isolation;
use crate::privileges;
use crate::sys::{self, Confinement, Step};

/// Log files may hold what users typed: not for everyone.
const LOG_MODE: u32 = 0o640;
/// UTF-8, and there without any locale package installed.
const DEFAULT_LANG: &str = "C.UTF-8";

/// All that is needed to start one worker.
#[derive(Debug)]
pub struct Spec {
    pub app: String,
    /// `N` of `APP/N`.
    pub number: u32,
    /// Program and arguments; in these and in `env` placeholders stand for the entrance.
    pub command: Vec<String>,
    /// Absolute.
    pub directory: PathBuf,
    /// homing's own user when absent.
    pub user: Option<String>,
    pub env: BTreeMap<String, String>,
    pub isolation: Isolation,
    pub entrance: Entrance,
    /// Output and errors are appended to it by the worker itself, not through homing.
    pub log: PathBuf,
}

/// A process just started: a child of this one. [`super::Process::new`] watches it.
#[derive(Debug)]
pub struct Spawned {
    pub pid: u32,
    pub pidfd: OwnedFd,
    /// Field 22 of /proc/PID/stat; with `pid` it names the process uniquely until the machine restarts.
    pub start_time: u64,
    pub kin: Kin,
}

/// Why a worker was not started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("app `{app}`: `command` is empty; give a program and its arguments")]
    NoCommand { app: String },
    #[error("app `{app}`: {problem}")]
    Program { app: String, problem: ProgramError },
    #[error("app `{app}`: directory `{}` cannot be used: {source}; create it, or correct `directory`", directory.display())]
    Directory { app: String, directory: PathBuf, source: io::Error },
    #[error("app `{app}`: {problem}")]
    Account { app: String, problem: AccountError },
    #[error("app `{app}`: {problem}")]
    Limit { app: String, problem: String },
    #[error("app `{app}`: the worker could not join its cgroup: {source}; see `isolation` in homing status")]
    Group { app: String, source: io::Error },
    #[error(
        "app `{app}`: the worker could not be set apart from homing ({step:?}): {source}; this is not the app's doing"
    )]
    Confine { app: String, step: Step, source: io::Error },
    #[error("app `{app}`: log file `{}` cannot be written: {source}; correct `log_dir`, or its permissions", path.display())]
    Log { app: String, path: PathBuf, source: io::Error },
    #[error("app `{app}`: no place for a worker's socket at `{}`: {source}; correct `run_dir`, or its permissions", path.display())]
    Socket { app: String, path: PathBuf, source: io::Error },
    #[error("app `{app}`: the interpreter or loader that command `{}` asks for does not exist; \
             look at its first line, or install what it needs", path.display())]
    Interpreter { app: String, path: PathBuf },
    #[error("app `{app}`: command `{}` may not be run by {who}; correct the permissions of the file and the directories \
             above it", path.display())]
    Denied { app: String, path: PathBuf, who: String },
    #[error("app `{app}`: command `{}` cannot be run: {source}; correct `command`", path.display())]
    Run { app: String, path: PathBuf, source: io::Error },
    #[error(
        "app `{app}`: a worker was started but cannot be watched, and was stopped again: {source}; \
             raise homing's limit of open files (ulimit -n) if that is what is said"
    )]
    Watch { app: String, source: io::Error },
}

/// Starts the worker in `group`, where there is one. It is running, or has already ended, when this returns; that it is
/// ready is for `probe` to find out.
pub fn spawn(spec: &Spec, group: Option<Group>) -> Result<Spawned, SpawnError> {
    let spawned = start(spec, group);
    // A directory that could not be made is not this worker's.
    if spawned.as_ref().is_err_and(|error| !matches!(error, SpawnError::Socket { .. })) {
        socket::remove(&spec.entrance.address());
    }
    spawned
}

fn start(spec: &Spec, group: Option<Group>) -> Result<Spawned, SpawnError> {
    let app = || spec.app.clone();
    let (name, arguments) = spec.command.split_first().ok_or_else(|| SpawnError::NoCommand { app: app() })?;
    check_directory(&spec.directory).map_err(|source| SpawnError::Directory {
        app: app(),
        directory: spec.directory.clone(),
        source,
    })?;
    let account = account::find(spec.user.as_deref(), spec.isolation.group.as_deref())
        .map_err(|problem| SpawnError::Account { app: app(), problem })?;
    let name = spec.entrance.fill_in(name);
    let path = program::resolve(&name, &spec.directory, &program::search_path(&spec.env))
        .map_err(|problem| SpawnError::Program { app: app(), problem })?;
    let log_error = |source| SpawnError::Log { app: app(), path: spec.log.clone(), source };
    let log = open_log(&spec.log).map_err(log_error)?;
    let log_twin = log.try_clone().map_err(log_error)?;
    let groups = group.as_ref().map_or_else(|| Ok(Vec::new()), Group::doors);
    let groups = groups.map_err(|source| SpawnError::Group { app: app(), source })?;
    if let Entrance::Socket(path) = &spec.entrance {
        let identity = account.identity.as_ref();
        let owner = identity.map(|identity| (identity.uid.as_raw(), identity.gid.as_raw()));
        socket::prepare(path, owner).map_err(|source| SpawnError::Socket { app: app(), path: path.clone(), source })?;
    }

    let mut command = Command::new(&path);
    command
        .arg0(&name)
        .args(arguments.iter().map(|argument| spec.entrance.fill_in(argument)))
        .current_dir(&spec.directory)
        .env_clear()
        .envs(environment(spec, account.user.as_ref()))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_twin);
    let is_root = account.identity.as_ref().map_or_else(rustix::process::geteuid, |identity| identity.uid).is_root();
    let confinement = Confinement {
        identity: account.identity,
        groups,
        limits: limits::of(&spec.isolation.limits),
        umask: spec.isolation.umask,
        capabilities: spec.isolation.no_new_privileges.then(|| privileges::of_worker(is_root)),
        expendable: is_protected_from_oom(),
    };
    let progress = sys::detach(&mut command, confinement);
    let progress = progress.map_err(|source| SpawnError::Confine { app: app(), step: Step::Detach, source })?;
    if let Entrance::Passed { socket, .. } = &spec.entrance {
        let passed = sys::pass_socket(&mut command, &name, socket.as_fd());
        passed.map_err(|source| SpawnError::Run { app: app(), path: path.clone(), source })?;
    }
    let child = command.spawn();
    drop(command);
    let child = child.map_err(|source| match progress.failed_step() {
        None => start_error(spec, path, source),
        Some(step) => confine_error(spec, step, source),
    })?;
    let kin = Kin { group, mark: mark(&spec.app, spec.number, &spec.entrance.address()) };
    watch(child, kin).map_err(|source| SpawnError::Watch { app: app(), source })
}

/// By its service manager, as `OOMScoreAdjust=` does.
fn is_protected_from_oom() -> bool {
    let own = fs::read_to_string("/proc/self/oom_score_adj").ok();
    own.and_then(|text| text.trim().parse::<i32>().ok()).is_some_and(|score| score < 0)
}

fn confine_error(spec: &Spec, step: Step, source: io::Error) -> SpawnError {
    let app = spec.app.clone();
    match step {
        Step::JoinGroups => SpawnError::Group { app, source },
        Step::Limit(number) => {
            SpawnError::Limit { app, problem: limits::refusal(&spec.isolation.limits, number, &source) }
        }
        Step::Identity => SpawnError::Account {
            app,
            problem: account::refusal(spec.user.as_deref(), spec.isolation.group.as_deref()),
        },
        Step::Detach | Step::Privileges => SpawnError::Confine { app, step, source },
    }
}

fn start_error(spec: &Spec, path: PathBuf, source: io::Error) -> SpawnError {
    let app = spec.app.clone();
    match (Errno::from_io_error(&source), spec.user.clone()) {
        // The file itself was just seen.
        (Some(Errno::NOENT), _) => SpawnError::Interpreter { app, path },
        (Some(Errno::ACCESS), user) => {
            let who = user.map_or_else(|| "homing's own user".to_owned(), |user| format!("user `{user}`"));
            SpawnError::Denied { app, path, who }
        }
        (Some(Errno::AGAIN), _) if spec.isolation.limits.processes.is_some() => {
            SpawnError::Limit { app, problem: limits::too_many_processes(&spec.isolation.limits) }
        }
        _ => SpawnError::Run { app, path, source },
    }
}

/// The child's id stays its own until it is waited for, and only `Process` does that: opening by id is safe here.
fn watch(mut child: Child, kin: Kin) -> io::Result<Spawned> {
    let pid = child.id();
    let opened = open_pidfd(pid).and_then(|pidfd| Ok((pidfd, Stat::read(pid)?.start_time)));
    match opened {
        Ok((pidfd, start_time)) => Ok(Spawned { pid, pidfd, start_time, kin }),
        Err(error) => {
            // It has had no time to start anything of its own, and unwatched it would never be stopped.
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

pub(super) fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    Ok(rustix::process::pidfd_open(id, PidfdFlags::empty())?)
}

fn check_directory(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.is_dir() { Ok(()) } else { Err(Errno::NOTDIR.into()) }
}

/// A disk that takes no file keeps no worker from running.
fn open_log(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().append(true).create(true).mode(LOG_MODE).open(path);
    match opened {
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOSPC | Errno::DQUOT | Errno::ROFS)) => {
            tracing::warn!(path = %path.display(), %error, "no log file: what this worker writes is lost until it is started again");
            OpenOptions::new().append(true).open("/dev/null")
        }
        opened => opened,
    }
}

/// What a worker is told, and no more. homing's own environment may hold secrets that are not the app's.
fn environment(spec: &Spec, user: Option<&User>) -> BTreeMap<String, String> {
    let own = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let known = user.cloned().or_else(|| User::from_uid(nix::unistd::geteuid()).ok().flatten());
    let home = known.as_ref().map(|user| user.dir.display().to_string());
    let mut environment = BTreeMap::from([
        ("LANG".to_owned(), own("LANG").unwrap_or_else(|| DEFAULT_LANG.to_owned())),
        ("PATH".to_owned(), program::search_path(&spec.env)),
        ("HOME".to_owned(), home.or_else(|| own("HOME")).unwrap_or_else(|| "/".to_owned())),
    ]);
    environment.extend(known.map(|user| ("USER".to_owned(), user.name)));
    environment.extend(spec.env.iter().map(|(name, value)| (name.clone(), spec.entrance.fill_in(value))));
    // Last, for these are facts that an app's `env` cannot change.
    environment.extend(spec.entrance.told());
    environment.insert("HOMING_APP".to_owned(), spec.app.clone());
    environment.insert("HOMING_WORKER".to_owned(), format!("{}/{}", spec.app, spec.number));
    environment
}

/// What of its environment names a worker and no other: inherited by all that it starts.
pub fn mark(app: &str, number: u32, address: &Address) -> Vec<String> {
    let given = match address {
        Address::Tcp(address) => format!("PORT={}", address.port()),
        Address::Unix(path) => format!("HOMING_SOCKET={}", path.display()),
    };
    vec![format!("HOMING_WORKER={app}/{number}"), given]
}

#[cfg(test)]
mod tests;
