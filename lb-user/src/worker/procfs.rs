//! The little that homing reads under /proc: one process's identity, and who belongs to a worker.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;

/// What /proc/PID/stat says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) pid: u32,
    pub(super) parent: u32,
    /// Process id of the session's leader.
    pub(super) session: u32,
    /// Clock ticks after boot. With the id it names a process uniquely, for ids are used again.
    pub(super) start_time: u64,
    /// Ended, and kept only until its parent asks for the status.
    pub(super) dead: bool,
}

impl Stat {
    pub(super) fn read(pid: u32) -> io::Result<Stat> {
        let text = fs::read(format!("/proc/{pid}/stat"))?;
        Stat::parse(pid, &String::from_utf8_lossy(&text))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is not as expected")))
    }

    fn parse(pid: u32, text: &str) -> Option<Stat> {
        // The second field is the program's name in parentheses and may itself hold spaces and parentheses.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        let start_time = fields.nth(15)?.parse().ok()?;
        Some(Stat { pid, parent, session, start_time, dead: matches!(state, "Z" | "X" | "x") })
    }
}

/// Which processes belong to a worker: those whose parent or whose session's leader does. Remembers everyone it saw, so
/// that a child whose parent has died meanwhile is still recognised by its session.
pub(super) struct Tree {
    root: u32,
    root_start_time: u64,
    known: HashSet<u32>,
}

impl Tree {
    pub(super) fn new(root: u32, root_start_time: u64) -> Tree {
        Tree { root, root_start_time, known: HashSet::from([root]) }
    }

    /// Its living processes.
    pub(super) fn scan(&mut self) -> io::Result<Vec<Stat>> {
        self.scan_marked(&[])
    }

    /// Its living processes, and those that have all lines of `mark` in their environment: detached daemons, whose parent
    /// and session say nothing. Where it is empty nobody is asked.
    pub(super) fn scan_marked(&mut self, mark: &[String]) -> io::Result<Vec<Stat>> {
        let all = all_processes()?;
        if all.get(&self.root).is_some_and(|root| root.start_time != self.root_start_time) {
            // A stranger has the id. An id is not given away while a session is named by it, so nobody is left.
            return Ok(Vec::new());
        }
        let mut members: BTreeMap<u32, Stat> = BTreeMap::new();
        let newer = all.values().filter(|stat| stat.start_time >= self.root_start_time && !mark.is_empty());
        let marked: HashSet<u32> = newer.filter(|stat| has_mark(stat.pid, mark)).map(|stat| stat.pid).collect();
        loop {
            let before = members.len();
            for stat in all.values() {
                let belongs = stat.pid == self.root
                    || marked.contains(&stat.pid)
                    || self.known.contains(&stat.parent)
                    || self.known.contains(&stat.session);
                // Nothing older than the worker is its own: an id that it used was another's then.
                if belongs && stat.start_time >= self.root_start_time {
                    self.known.insert(stat.pid);
                    members.insert(stat.pid, *stat);
                }
            }
            if members.len() == before {
                break;
            }
        }
        Ok(members.into_values().filter(|stat| !stat.dead).collect())
    }
}

/// Workers of these apps, with output in this directory, that no homing looks after any more: the ids of their first
/// processes, and APP/N.
pub fn leftovers(apps: &[&str], log_dir: &Path) -> Vec<(u32, String)> {
    let Ok(log_dir) = log_dir.canonicalize() else { return Vec::new() };
    let all = all_processes().unwrap_or_default();
    let leads = |stat: &&Stat| stat.session == stat.pid && !stat.dead;
    all.values()
        .filter(leads)
        .filter_map(|stat| {
            let environment = fs::read(format!("/proc/{}/environ", stat.pid)).ok()?;
            let mut variables = environment.split(|&byte| byte == 0);
            let id = variables.find_map(|variable| variable.strip_prefix(b"HOMING_WORKER="))?;
            let id = String::from_utf8_lossy(id).into_owned();
            let is_of_apps = id.split_once('/').is_some_and(|(app, _)| apps.contains(&app));
            // Another homing may have an app of the same name.
            let writes_here =
                |fd| fs::read_link(format!("/proc/{}/fd/{fd}", stat.pid)).is_ok_and(|file| file.starts_with(&log_dir));
            let is_of_apps = is_of_apps && (writes_here(1) || writes_here(2));
            let parent = fs::read(format!("/proc/{}/comm", stat.parent)).unwrap_or_default();
            (is_of_apps && parent != b"homing\n").then_some((stat.pid, id))
        })
        .collect()
}

fn all_processes() -> io::Result<BTreeMap<u32, Stat>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ends while we look is simply not there.
        if let Ok(stat) = Stat::read(pid) {
            all.insert(pid, stat);
        }
    }
    Ok(all)
}

/// Whether the environment that the process was started with has all these lines. Of other users' processes root alone
/// is told.
fn has_mark(pid: u32, mark: &[String]) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    mark.iter().all(|line| environment.split(|&byte| byte == 0).any(|own| own == line.as_bytes()))
}

/// Memory in bytes with shared pages shared out among all who have them; `None` where that may not be asked.
pub(super) fn proportional_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// Resident memory in bytes, 0 for a process that is gone.
pub(super) fn resident_bytes(pid: u32) -> u64 {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/statm")) else { return 0 };
    let pages: u64 = text.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_whose_name_holds_parentheses_and_spaces_is_read_right() {
        let text = "42 (a) S (b c) S 7 41 40 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 0 0";
        let expected = Stat { pid: 42, parent: 7, session: 40, start_time: 987_654, dead: false };
        assert_eq!(Stat::parse(42, text), Some(expected));
    }

    #[test]
    fn text_that_is_cut_short_is_refused() {
        assert_eq!(Stat::parse(42, "42 (sh) S 7 41 40 0"), None);
        assert_eq!(Stat::parse(42, ""), None);
    }

    #[test]
    fn the_own_process_is_alive_and_uses_memory() {
        let own = Stat::read(std::process::id()).expect("readable");
        assert!(!own.dead && own.start_time > 0, "{own:?}");
        assert!(resident_bytes(own.pid) > 100_000);
    }
}
