//! Starting a worker: its arguments, its environment, its user, its log, and a session of its own by which all its
//! processes can be found later. A worker is meant to outlive homing, so nothing ties the two together but ids.

use std::collections::BTreeMap;
use std::env;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::User;
use rustix::io::Errno;
use rustix::process::{Gid, Pid, PidfdFlags, Uid};

use super::procfs::Stat;
use super::program::{self, ProgramError};
use crate::sys::{self, Identity};

/// Stands for the worker's port in its arguments.
pub const PORT_PLACEHOLDER: &str = "{port}";
/// Log files may hold what users typed: not for everyone.
const LOG_MODE: u32 = 0o640;
/// UTF-8, and there without any locale package installed.
const DEFAULT_LANG: &str = "C.UTF-8";

/// All that is needed to start one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub app: String,
    /// `N` of `APP/N`.
    pub number: u32,
    /// Program and arguments; `{port}` stands for the port.
    pub command: Vec<String>,
    /// Absolute.
    pub directory: PathBuf,
    /// homing's own user when absent.
    pub user: Option<String>,
    pub env: BTreeMap<String, String>,
    pub port: u16,
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
    #[error("app `{app}`: there is no user `{user}` on this machine; create it, or correct `user`")]
    UnknownUser { app: String, user: String },
    #[error("app `{app}`: user `{user}` cannot be looked up: {source}; correct `user`, or the machine's user database")]
    UserLookup { app: String, user: String, source: io::Error },
    #[error("app `{app}`: homing may not start workers as user `{user}`; run homing as root, or remove `user`")]
    UserRefused { app: String, user: String },
    #[error("app `{app}`: log file `{}` cannot be written: {source}; correct `log_dir`, or its permissions", path.display())]
    Log { app: String, path: PathBuf, source: io::Error },
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

/// Starts the worker. It is running, or has already ended, when this returns; that it is ready is for `probe` to find out.
pub fn spawn(spec: &Spec) -> Result<Spawned, SpawnError> {
    let app = || spec.app.clone();
    let (name, arguments) = spec.command.split_first().ok_or_else(|| SpawnError::NoCommand { app: app() })?;
    check_directory(&spec.directory).map_err(|source| SpawnError::Directory {
        app: app(),
        directory: spec.directory.clone(),
        source,
    })?;
    let account = spec.user.as_deref().map(|user| account(spec, user)).transpose()?;
    let name = with_port(name, spec.port);
    let path = program::resolve(&name, &spec.directory, &program::search_path(&spec.env))
        .map_err(|problem| SpawnError::Program { app: app(), problem })?;
    let log_error = |source| SpawnError::Log { app: app(), path: spec.log.clone(), source };
    let log = open_log(&spec.log).map_err(log_error)?;
    let log_twin = log.try_clone().map_err(log_error)?;

    let mut command = Command::new(&path);
    command
        .arg0(&name)
        .args(arguments.iter().map(|argument| with_port(argument, spec.port)))
        .current_dir(&spec.directory)
        .env_clear()
        .envs(environment(spec, account.as_ref().map(|account| &account.user)))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_twin);
    sys::detach(&mut command, account.and_then(|account| account.identity));
    let child = command.spawn().map_err(|source| start_error(spec, path, source))?;
    watch(child).map_err(|source| SpawnError::Watch { app: app(), source })
}

fn start_error(spec: &Spec, path: PathBuf, source: io::Error) -> SpawnError {
    let app = spec.app.clone();
    match (Errno::from_io_error(&source), spec.user.clone()) {
        (Some(Errno::PERM), Some(user)) => SpawnError::UserRefused { app, user },
        // The file itself was just seen.
        (Some(Errno::NOENT), _) => SpawnError::Interpreter { app, path },
        (Some(Errno::ACCESS), user) => {
            let who = user.map_or_else(|| "homing's own user".to_owned(), |user| format!("user `{user}`"));
            SpawnError::Denied { app, path, who }
        }
        _ => SpawnError::Run { app, path, source },
    }
}

/// The child's id stays its own until it is waited for, and only `Process` does that: opening by id is safe here.
fn watch(mut child: Child) -> io::Result<Spawned> {
    let pid = child.id();
    let opened = open_pidfd(pid).and_then(|pidfd| Ok((pidfd, Stat::read(pid)?.start_time)));
    match opened {
        Ok((pidfd, start_time)) => Ok(Spawned { pid, pidfd, start_time }),
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

fn with_port(text: &str, port: u16) -> String {
    text.replace(PORT_PLACEHOLDER, &port.to_string())
}

fn check_directory(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.is_dir() { Ok(()) } else { Err(Errno::NOTDIR.into()) }
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(LOG_MODE).open(path)
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
    environment.extend(spec.env.clone());
    // Last, for these are facts that an app's `env` cannot change.
    environment.insert("PORT".to_owned(), spec.port.to_string());
    environment.insert("HOMING_APP".to_owned(), spec.app.clone());
    environment.insert("HOMING_WORKER".to_owned(), format!("{}/{}", spec.app, spec.number));
    environment
}

struct Account {
    user: User,
    /// Absent when homing already is that user, so that no privilege is needed.
    identity: Option<Identity>,
}

fn account(spec: &Spec, name: &str) -> Result<Account, SpawnError> {
    let lookup_error = |errno: nix::Error| SpawnError::UserLookup {
        app: spec.app.clone(),
        user: name.to_owned(),
        source: errno.into(),
    };
    let user = User::from_name(name)
        .map_err(lookup_error)?
        .ok_or_else(|| SpawnError::UnknownUser { app: spec.app.clone(), user: name.to_owned() })?;
    let euid = nix::unistd::geteuid();
    if user.uid == euid && !euid.is_root() {
        return Ok(Account { user, identity: None });
    }
    let c_name = CString::new(name).map_err(|_| lookup_error(nix::Error::EINVAL))?;
    let groups = nix::unistd::getgrouplist(&c_name, user.gid).map_err(lookup_error)?;
    let identity = Identity {
        uid: Uid::from_raw(user.uid.as_raw()),
        gid: Gid::from_raw(user.gid.as_raw()),
        groups: groups.into_iter().map(|group| Gid::from_raw(group.as_raw())).collect(),
    };
    Ok(Account { user, identity: Some(identity) })
}

#[cfg(test)]
mod tests;
