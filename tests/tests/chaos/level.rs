//! What homing takes of the machine while nobody is there: after each fault what it was before.

use std::collections::BTreeMap;
use std::fs;

use homing_tests::instance::{Homing, wait_seeing};
use homing_tests::network::Namespace;

use crate::tcp;

/// What homing takes at one moment.
#[derive(Debug)]
struct Size {
    /// File descriptors by what they are.
    descriptors: BTreeMap<String, usize>,
    memory_kib: u64,
}

/// What it took before anything happened, whichever process it was.
pub struct Level(Size);

impl Size {
    fn of(homing: &Homing, server: &Namespace) -> Self {
        let proc = format!("/proc/{}", homing.pid());
        let status = fs::read_to_string(format!("{proc}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        let memory_kib = line.trim().trim_end_matches(" kB").parse().expect("a number");
        let to_workers: Vec<String> = tcp::connections(server)
            .iter()
            .filter(|connection| connection.is_loopback)
            .map(|connection| connection.inode.to_string())
            .collect();
        let mut descriptors = BTreeMap::new();
        for entry in fs::read_dir(format!("{proc}/fd")).expect("it runs").flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            let (kind, rest) = target.split_once(':').unwrap_or(("file", ""));
            let inode = rest.trim_matches(['[', ']']);
            let kind = match kind {
                "socket" if to_workers.iter().any(|idle| idle == inode) => "idle connections to workers",
                // What it is stands in the brackets.
                "anon_inode" => inode,
                kind => kind,
            };
            *descriptors.entry(kind.to_owned()).or_default() += 1;
        }
        Self { descriptors, memory_kib }
    }

    /// Connections to workers that wait for a request are bounded, and closed after some seconds.
    fn count(&self) -> usize {
        self.descriptors.iter().filter(|(kind, _)| !kind.starts_with("idle")).map(|(_, count)| count).sum()
    }
}

impl Level {
    pub fn of(homing: &Homing, server: &Namespace) -> Self {
        Self(Size::of(homing, server))
    }

    /// Waits until homing is no larger than it was. Of memory the allocator keeps some, whatever it was needed for. `open`: connections
    /// to the apps although nobody is there. Each may keep a worker that has a successor, which is a process to watch.
    pub fn wait_for_return(&self, homing: &Homing, server: &Namespace, open: impl Fn() -> usize) {
        let Self(first) = self;
        let now = wait_seeing("homing is as large as it was", || {
            let (now, open) = (Size::of(homing, server), open());
            let has_returned = now.count() <= first.count() + open && now.memory_kib <= first.memory_kib / 2 * 3;
            if has_returned {
                return Ok(now);
            }
            Err(format!("at first {first:?}\nnow {now:?}\n{open} connections\n{:#}", homing.status()["apps"]))
        });
        println!("{:18}{} descriptors, {} KiB", "", now.count(), now.memory_kib);
    }
}
