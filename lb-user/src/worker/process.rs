//! One worker process, held by a pidfd: what happens through it can never hit a stranger that was given the same id.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;

use super::cgroup::{Group, Kills};
use super::procfs::{self, Stat, Tree};
use super::spawn::{Spawned, open_pidfd};
use crate::sys;

/// Looks over a tree that is being killed: each finds only what was forked during the one before.
const KILL_ROUNDS_MAX: usize = 16;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// It was adopted, and only a parent is told.
    Unknown,
}

/// A worker's first process, and through it all that it started. Dropping it after its end lets the kernel forget the
/// process; until then its id, by which its descendants are found, is given to nobody else. Dropping it before its end
/// leaves it running.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start_time: u64,
    pidfd: AsyncFd<OwnedFd>,
    kin: Kin,
}

/// By what the processes of a worker are recognised.
#[derive(Debug, Default)]
pub struct Kin {
    /// Where all of them are. Where there is none they are known by their sessions and parents, and by their mark.
    pub group: Option<Group>,
    /// Lines of the environment; see [`super::spawn::mark`].
    pub mark: Vec<String>,
}

impl Process {
    /// Watches a worker just started. Needs a tokio runtime, like [`Process::adopt`].
    pub fn new(spawned: Spawned) -> io::Result<Process> {
        let Spawned { pid, pidfd, start_time, kin } = spawned;
        // Readable is how the kernel says ended.
        Ok(Process { pid, start_time, pidfd: sys::watch_readable(pidfd)?, kin })
    }

    /// Takes over a worker that an earlier homing started; `None` if it is gone, be its id in use again or not.
    pub fn adopt(pid: u32, start_time: u64, kin: Kin) -> io::Result<Option<Process>> {
        match open_verified(pid, start_time)? {
            Some(pidfd) => Process::new(Spawned { pid, pidfd, start_time, kin }).map(Some),
            None => Ok(None),
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Waits for its end. May be asked again and may be cancelled. Its descendants may live on: see [`Process::kill_tree`].
    pub async fn exited(&self) -> Exit {
        loop {
            let Ok(mut guard) = self.pidfd.readable().await else {
                // Only when the runtime is shutting down: nobody will wait for the answer.
                return std::future::pending().await;
            };
            if has_ended(self.pidfd.get_ref()) {
                return self.status();
            }
            guard.clear_ready();
        }
    }

    /// Sends a signal to this process alone. One that has ended takes it without effect.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        send(self.pidfd.get_ref(), signal)
    }

    /// Sends a signal to every process of the worker, and says to how many. SIGKILL is repeated until nobody is left
    /// who was not sent it, so that what is forked meanwhile goes too. Works as well after the first process has ended.
    pub fn kill_tree(&self, signal: Signal) -> io::Result<usize> {
        let Some(group) = &self.kin.group else { return self.kill_known(signal) };
        if signal != Signal::KILL {
            return group.signal(signal);
        }
        let killed = group.kill();
        // The first process, if it has left its group, is the worker all the same.
        self.signal(signal)?;
        killed
    }

    /// Whoever can be recognised as the worker's by /proc.
    fn kill_known(&self, signal: Signal) -> io::Result<usize> {
        let mut tree = self.tree();
        let mut told = HashSet::new();
        let (rounds, mark) = if signal == Signal::KILL { (KILL_ROUNDS_MAX, &*self.kin.mark) } else { (1, &[][..]) };
        for _ in 0..rounds {
            let before = told.len();
            for stat in tree.scan_marked(mark)? {
                if told.contains(&(stat.pid, stat.start_time)) {
                    continue;
                }
                if let Some(pidfd) = open_verified(stat.pid, stat.start_time)? {
                    send(&pidfd, signal)?;
                    told.insert((stat.pid, stat.start_time));
                }
            }
            if told.len() == before {
                break;
            }
        }
        Ok(told.len())
    }

    /// Ids of its living processes, its own first while it lives.
    pub fn members(&self) -> io::Result<Vec<u32>> {
        let mut members: Vec<u32> = self.stats()?.iter().map(|stat| stat.pid).collect();
        members.sort_by_key(|pid| (*pid != self.pid, *pid));
        Ok(members)
    }

    /// Resident memory of all its processes. Pages that they share are counted for each.
    pub fn memory_bytes(&self) -> u64 {
        self.stats().map_or(0, |stats| stats.iter().map(|stat| procfs::resident_bytes(stat.pid)).sum())
    }

    pub fn kin(&self) -> &Kin {
        &self.kin
    }

    /// How often the kernel killed a process of it for memory, where that is counted.
    pub fn memory_kills(&self) -> Option<Kills> {
        self.kin.group.as_ref()?.kills()
    }

    /// Whether all its processes are gone, and their groups too.
    pub fn is_cleared(&self) -> bool {
        match &self.kin.group {
            Some(group) => group.remove(),
            None => self.stats().is_ok_and(|left| left.is_empty()),
        }
    }

    pub(super) fn stats(&self) -> io::Result<Vec<Stat>> {
        let Some(group) = &self.kin.group else { return self.tree().scan() };
        let stats = group.members().into_iter().filter_map(|pid| Stat::read(pid).ok());
        Ok(stats.filter(|stat| !stat.dead).collect())
    }

    fn tree(&self) -> Tree {
        Tree::new(self.pid, self.start_time)
    }

    /// Leaves the process waitable: its id is to stay reserved until `drop`.
    fn status(&self) -> Exit {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match rustix::process::waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), options) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            // Not a child of ours.
            Ok(None) | Err(_) => Exit::Unknown,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        // Fails for adopted processes, whose parent does this.
        let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), options);
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Exit::Code(code) => write!(f, "exited with code {code}"),
            Exit::Signal(number) => match Signal::from_named_raw(number) {
                Some(signal) => write!(f, "killed by {}", name_of(signal)),
                None => write!(f, "killed by signal {number}"),
            },
            Exit::Unknown => write!(f, "ended; how is not known, for an earlier homing started it"),
        }
    }
}

fn name_of(signal: Signal) -> String {
    let name = match signal {
        Signal::KILL => "SIGKILL (by hand, or out of memory: see the kernel's log)",
        Signal::TERM => "SIGTERM",
        Signal::INT => "SIGINT",
        Signal::HUP => "SIGHUP",
        Signal::SEGV => "SIGSEGV (a bug in native code)",
        Signal::ABORT => "SIGABRT (it gave up by itself)",
        Signal::BUS => "SIGBUS",
        Signal::ILL => "SIGILL",
        Signal::FPE => "SIGFPE",
        Signal::PIPE => "SIGPIPE",
        other => return format!("signal {}", other.as_raw()),
    };
    name.to_owned()
}

/// A pidfd for exactly this process, or nothing if it is gone. The check comes after the opening: whoever is seen then is
/// who was opened, for an id is not reused while its process is there to be looked at.
pub(super) fn open_verified(pid: u32, start_time: u64) -> io::Result<Option<OwnedFd>> {
    let pidfd = match open_pidfd(pid) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            return match Errno::from_io_error(&error) {
                // INVAL: the id of a thread by now.
                Some(Errno::SRCH | Errno::INVAL) => Ok(None),
                _ => Err(error),
            };
        }
    };
    let same = Stat::read(pid).is_ok_and(|stat| stat.start_time == start_time && !stat.dead);
    Ok((same && !has_ended(&pidfd)).then_some(pidfd))
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut asked = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(rustix::event::poll(&mut asked, Some(&at_once)), Ok(1..))
}

pub(super) fn send(pidfd: &OwnedFd, signal: Signal) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        // Ended meanwhile.
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
