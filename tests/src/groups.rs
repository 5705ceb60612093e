//! The cgroups in which a homing keeps its workers.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of /proc/PID/cgroup that name a homing.
pub fn groups(pid: i32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().filter(|line| line.contains("/homing-")).map(str::to_owned).collect()
}

/// The directories of a process's groups.
pub fn directories(pid: i32) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let of = |line: &String| {
        let (names, path) = line.split_once(':')?.1.split_once(':')?;
        let mount = mounts.lines().find(|mount| match names {
            "" => mount.contains(" - cgroup2 "),
            _ => mount.contains(" - cgroup ") && mount.rsplit(',').next() == Some(names),
        })?;
        Some(Path::new(mount.split(' ').nth(4)?).join(path.trim_start_matches('/')))
    };
    groups(pid).iter().filter_map(of).collect()
}
