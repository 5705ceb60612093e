//! Where control groups are mounted, and where in them a process is: read from /proc, and nothing made.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// cgroup v1 has one hierarchy for each controller, v2 one for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

impl Version {
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// A mounted hierarchy, and the directory of a process in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) version: Version,
    /// Of v1: what it controls.
    pub(super) controllers: Vec<String>,
    pub(super) mount: PathBuf,
    pub(super) directory: PathBuf,
}

impl Place {
    pub(super) fn controls(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// Where this process is: `self`, or an id.
pub(super) fn places(process: &str) -> io::Result<Vec<Place>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
    Ok(parse(&mounts, &groups))
}

/// See proc_pid_mountinfo(5) and cgroups(7).
fn parse(mounts: &str, groups: &str) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for line in mounts.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let front: Vec<&str> = front.split(' ').collect();
        let back: Vec<&str> = back.split(' ').collect();
        let (&[_, _, _, root, mount, ..], &[kind, _, options]) = (front.as_slice(), back.as_slice()) else { continue };
        let place = match kind {
            "cgroup2" => {
                groups.lines().find_map(|line| line.strip_prefix("0::")).map(|path| (Version::V2, vec![], path))
            }
            "cgroup" => of_v1(options, groups).map(|(controllers, path)| (Version::V1, controllers, path)),
            _ => None,
        };
        let Some((version, controllers, path)) = place else { continue };
        let (root, mount) = (unescaped(root), unescaped(mount));
        // The group may be outside of what is mounted here.
        let Ok(below) = Path::new(path).strip_prefix(&root) else { continue };
        let is_known = |known: &Place| known.version == version && known.controllers == controllers;
        if path.starts_with("/..") || places.iter().any(is_known) {
            continue;
        }
        let directory = if below == Path::new("") { mount.clone() } else { mount.join(below) };
        places.push(Place { version, controllers, directory, mount });
    }
    places
}

/// The controllers of a v1 mount, and the process's path there.
fn of_v1<'g>(options: &str, groups: &'g str) -> Option<(Vec<String>, &'g str)> {
    let options: Vec<&str> = options.split(',').collect();
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?);
        let controllers: Vec<String> = names.split(',').map(str::to_owned).collect();
        let is_here = !names.is_empty() && controllers.iter().all(|name| options.contains(&name.as_str()));
        is_here.then_some((controllers, path))
    })
}

/// Spaces and the like are written as `\040`.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machine_has_v1_controllers_and_a_bare_v2() {
        let mounts = "\
30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";
        let groups = "4:memory:/system.slice/homing.service\n3:cpu,cpuacct:/\n1:name=systemd:/system.slice\n0::/system.slice/homing.service\n";
        let places = parse(mounts, groups);
        let shown: Vec<(&str, String, &str)> = places
            .iter()
            .map(|place| (place.version.name(), place.controllers.join(","), place.directory.to_str().expect("text")))
            .collect();
        assert_eq!(
            shown,
            [
                ("v1", "cpu,cpuacct".to_owned(), "/sys/fs/cgroup/cpu,cpuacct"),
                ("v1", "memory".to_owned(), "/sys/fs/cgroup/memory/system.slice/homing.service"),
                ("v1", "name=systemd".to_owned(), "/sys/fs/cgroup/systemd/system.slice"),
                ("v2", String::new(), "/sys/fs/cgroup/unified/system.slice/homing.service"),
            ]
        );
        assert!(places[0].controls("cpu") && !places[0].controls("memory"));
    }

    #[test]
    fn a_container_sees_its_part_of_the_tree_alone() {
        let mounts = "50 40 0:30 /docker/7 /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        let place = |groups| parse(mounts, groups).into_iter().map(|place| place.directory).next();
        assert_eq!(place("0::/docker/7/a b\n"), Some(PathBuf::from("/sys/fs/cgroup/a b")));
        assert_eq!(place("0::/docker/8\n"), None);
        assert_eq!(place("0::/../8\n"), None);
    }

    #[test]
    fn escaped_spaces_in_a_mount_point_are_read() {
        let mounts = "50 40 0:30 / /mnt/c\\040g rw - cgroup2 none rw\n";
        assert_eq!(parse(mounts, "0::/\n")[0].mount, Path::new("/mnt/c g"));
    }

    #[test]
    fn this_machine_is_understood() {
        let places = places("self").expect("readable");
        for place in places {
            assert!(place.directory.join("cgroup.procs").exists(), "{place:?}");
        }
    }
}
