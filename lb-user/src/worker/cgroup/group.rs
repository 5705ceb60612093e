//! The control groups of one worker: all its processes are in them, whatever they forked, detached or handed to init.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{iter, thread};

use rustix::process::Signal;

use super::hierarchy::Version;
use crate::worker::process::send;
use crate::worker::spawn::open_pidfd;

/// Looks at a group that is killed one by one; each finds only what was forked during the one before.
const KILL_ROUNDS_MAX: usize = 64;
/// CPU weights count from 100, v1's shares from 1,024.
const SHARES_PER_100: u64 = 1_024;
/// v1 charges memory in batches of pages, on each CPU: so much less than the limit is at it.
const CHARGE_BYTES: u64 = 2 << 20;
/// The kernel takes no more (MAX_SHARES).
const SHARES_MAX: u64 = 1 << 18;

/// One worker's groups. Dropped, it removes what is empty: nothing that still runs loses its group.
#[derive(Debug)]
pub struct Group {
    /// Where its processes are counted and killed.
    pub(super) tree: PathBuf,
    pub(super) memory: Option<(Version, PathBuf)>,
    pub(super) cpu: Option<(Version, PathBuf)>,
}

/// How often the kernel killed a process of the group for memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kills {
    pub count: u64,
    /// Whether the group's own limit was reached.
    pub own_limit: bool,
}

impl Group {
    /// Each directory once.
    fn directories(&self) -> impl Iterator<Item = &Path> {
        let others = [&self.memory, &self.cpu].into_iter().flatten().map(|(_, directory)| directory);
        iter::once(&self.tree).chain(others.filter(|directory| **directory != self.tree)).map(PathBuf::as_path)
    }

    /// As it was given to [`super::Cgroups::make`].
    pub fn name(&self) -> &str {
        self.tree.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    pub(super) fn is_in(&self, directory: &Path) -> bool {
        self.directories().any(|own| own == directory)
    }

    /// Makes the directories.
    pub(super) fn make(&self) -> io::Result<()> {
        self.directories().try_for_each(fs::create_dir)
    }

    /// What a process writes `0` to, to join.
    pub fn doors(&self) -> io::Result<Vec<File>> {
        self.directories()
            .map(|directory| OpenOptions::new().write(true).open(directory.join("cgroup.procs")))
            .collect()
    }

    pub fn has_memory(&self) -> bool {
        self.memory.is_some()
    }

    pub fn has_cpu(&self) -> bool {
        self.cpu.is_some()
    }

    /// All processes together may use this much, swap included; `None`: any. Raises and lowers.
    pub fn limit_memory(&self, bytes: Option<u64>) -> io::Result<()> {
        let (version, directory) = self.memory.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let text = |any: &str| bytes.map_or_else(|| any.to_owned(), |bytes| bytes.to_string());
        match version {
            Version::V2 => {
                put(&directory.join("memory.max"), &text("max"))?;
                where_there(put(&directory.join("memory.swap.max"), if bytes.is_some() { "0" } else { "max" }))
            }
            Version::V1 => {
                let (memory, text) = (directory.join("memory.limit_in_bytes"), text("-1"));
                let both = || where_there(put(&directory.join("memory.memsw.limit_in_bytes"), &text));
                // The limit of both is never below that of memory alone: the order depends on the direction.
                if put(&memory, &text).is_ok() {
                    return both();
                }
                both()?;
                put(&memory, &text)
            }
        }
    }

    /// 1 to 10,000; 100 is an ordinary share.
    pub fn weigh_cpu(&self, weight: u32) -> io::Result<()> {
        let (version, directory) = self.cpu.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        match version {
            Version::V2 => put(&directory.join("cpu.weight"), &weight.to_string()),
            Version::V1 => {
                let shares = u64::from(weight) * SHARES_PER_100 / 100;
                put(&directory.join("cpu.shares"), &shares.to_string())?;
                directory.parent().map_or(Ok(()), add_up_shares)
            }
        }
    }

    /// `None` where the kernel does not count them.
    pub fn kills(&self) -> Option<Kills> {
        let (version, directory) = self.memory.as_ref()?;
        let read = |file: &str| fs::read_to_string(directory.join(file)).ok();
        match version {
            Version::V2 => {
                let events = read("memory.events")?;
                Some(Kills { count: field(&events, "oom_kill")?, own_limit: field(&events, "oom")? > 0 })
            }
            Version::V1 => {
                let number = |file| read(file).and_then(|text| text.trim().parse::<u64>().ok());
                let highest = number("memory.max_usage_in_bytes")?;
                let limit = number("memory.limit_in_bytes")?;
                let own_limit = highest >= limit.saturating_sub(CHARGE_BYTES);
                Some(Kills { count: field(&read("memory.oom_control")?, "oom_kill")?, own_limit })
            }
        }
    }

    /// Ids of its living processes.
    pub fn members(&self) -> Vec<u32> {
        let mut members = Vec::new();
        members_below(&self.tree, &mut members);
        members.sort_unstable();
        members.dedup();
        members
    }

    /// Sends a signal to every process, and says to how many.
    pub fn signal(&self, signal: Signal) -> io::Result<usize> {
        let mut told = 0;
        for pid in self.members() {
            let Ok(pidfd) = open_pidfd(pid) else { continue };
            // Who is still seen here after the opening is who was opened.
            if self.members().binary_search(&pid).is_ok() {
                send(&pidfd, signal)?;
                told += 1;
            }
        }
        Ok(told)
    }

    /// Ends every process, those too that are being forked; says how many there were.
    pub fn kill(&self) -> io::Result<usize> {
        let count = self.members().len();
        match put(&self.tree.join("cgroup.kill"), "1") {
            Ok(()) => return Ok(count),
            // Nobody is left, or v1, or Linux before 5.14.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.kill_one_by_one()
    }

    pub(super) fn kill_one_by_one(&self) -> io::Result<usize> {
        // Nobody forks while frozen (v2); a signal to end is obeyed all the same.
        let _ = put(&self.tree.join("cgroup.freeze"), "1");
        let mut told = 0;
        for _ in 0..KILL_ROUNDS_MAX {
            match self.signal(Signal::KILL)? {
                0 => break,
                now => told = told.max(now),
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(told)
    }

    /// Removes the directories; whether nothing is left.
    pub fn remove(&self) -> bool {
        // Every one is tried, whatever becomes of the others.
        self.directories().filter(|directory| !remove_below(directory)).count() == 0
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A parent competes with ordinary processes for all of its workers: its shares are theirs together.
fn add_up_shares(parent: &Path) -> io::Result<()> {
    let shares = |directory: PathBuf| fs::read_to_string(directory.join("cpu.shares")).ok()?.trim().parse::<u64>().ok();
    let sum: u64 = children(parent).into_iter().filter_map(shares).sum();
    put(&parent.join("cpu.shares"), &sum.min(SHARES_MAX).to_string())
}

fn members_below(directory: &Path, members: &mut Vec<u32>) {
    if let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) {
        // 0: a process of another pid namespace, which has no id here.
        members.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|&pid| pid != 0));
    }
    for child in children(directory) {
        members_below(&child, members);
    }
}

/// Groups in a group: a worker that runs as root may make some.
pub(super) fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn remove_below(directory: &Path) -> bool {
    for child in children(directory) {
        remove_below(&child);
    }
    match fs::remove_dir(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Sets a value. Files of control groups are there or not; none is made.
pub(super) fn put(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// A machine without swap, or without its accounting, has no such file.
fn where_there(outcome: io::Result<()>) -> io::Result<()> {
    outcome.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// The number behind a word, one a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}
