//! Directories for the unix sockets of workers: one per process, which its user alone may enter.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::address::Address;

/// A unix socket's address has room for this many bytes (unix(7): 108 with the NUL).
pub const PATH_BYTES_MAX: usize = 107;

const FILE: &str = "socket";
/// Hexadecimal digits that tell one process of a worker from the next.
const NAME_DIGITS: usize = 8;
/// Who passes through `run_dir` finds directories that are closed to all but their owners.
const RUN_DIR_MODE: u32 = 0o755;
const DIR_MODE: u32 = 0o700;

/// Where the socket of a process of APP/N lies. `incarnation` is the process's random name.
pub fn path(run_dir: &Path, app: &str, number: u32, incarnation: u64) -> PathBuf {
    run_dir.join(format!("{app}-{number}-{:0NAME_DIGITS$x}", incarnation >> 32)).join(FILE)
}

/// The longest of an app's paths, in workers up to this many.
pub fn longest_path(run_dir: &Path, app: &str, workers_max: u32) -> PathBuf {
    path(run_dir, app, workers_max.saturating_sub(1), 0)
}

/// Makes the socket's directory, for this user and group alone (homing's own when absent).
///
/// # Errors
/// When it cannot be made, or is there already.
pub(super) fn prepare(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let run_dir = directory.parent().ok_or(io::ErrorKind::InvalidInput)?;
    if !run_dir.exists() {
        DirBuilder::new().recursive(true).mode(RUN_DIR_MODE).create(run_dir)?;
        // Whatever homing's umask is.
        fs::set_permissions(run_dir, fs::Permissions::from_mode(RUN_DIR_MODE))?;
    }
    if let Some((uid, _)) = owner {
        check_way(run_dir, uid)?;
    }
    DirBuilder::new().mode(DIR_MODE).create(directory)?;
    let given = owner.map_or(Ok(()), |(uid, gid)| give(directory, uid, gid));
    if given.is_err() {
        let _ = fs::remove_dir(directory);
    }
    given
}

/// Whether the user may pass through these directories. What their modes leave open, as with access control lists, passes.
fn check_way(run_dir: &Path, uid: u32) -> io::Result<()> {
    const OTHERS_OR_GROUP_PASS: u32 = 0o011;
    for directory in run_dir.ancestors() {
        let metadata = fs::metadata(directory)?;
        if uid != 0 && metadata.uid() != uid && metadata.mode() & OTHERS_OR_GROUP_PASS == 0 {
            let (directory, mode) = (directory.display(), metadata.mode() & 0o7777);
            return Err(io::Error::other(format!("its user may not pass through {directory} (mode {mode:04o})")));
        }
    }
    Ok(())
}

fn give(directory: &Path, uid: u32, gid: u32) -> io::Result<()> {
    // By a descriptor: a path may come to mean another directory.
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(directory)?;
    std::os::unix::fs::fchown(&opened, Some(uid), Some(gid))
}

/// Removes the directory of a worker that is gone. A worker on a port has none.
pub fn remove(address: &Address) {
    let Address::Unix(path) = address else { return };
    let Some(directory) = path.parent() else { return };
    if let Err(error) = fs::remove_dir_all(directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(directory = %directory.display(), %error, "a worker's socket could not be removed");
    }
}

/// Removes what earlier processes of APP/N left behind, by an unclean end: sockets on which nobody listens.
pub fn remove_stale(run_dir: &Path, app: &str, number: u32) {
    let prefix = format!("{app}-{number}-");
    let is_ours = |name: &str| {
        let digits = name.strip_prefix(&prefix);
        digits.is_some_and(|rest| rest.len() == NAME_DIGITS && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    for entry in fs::read_dir(run_dir).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_ours) {
            let address = Address::from(entry.path().join(FILE));
            if address.is_abandoned() {
                remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    #[test]
    fn each_process_has_a_directory_of_its_own_whatever_the_umask_for_its_user_alone() {
        let folder = folder();
        let run_dir = folder.path().join("run");
        let first = path(&run_dir, "sales", 2, 0xdead_beef_0000_0001);
        let second = path(&run_dir, "sales", 2, 0xdead_bee0_0000_0001);
        assert_eq!(first, run_dir.join("sales-2-deadbeef/socket"));
        prepare(&first, None).expect("made");
        prepare(&second, None).expect("made beside it");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").mode() & 0o7777;
        assert_eq!((mode(&run_dir), mode(first.parent().expect("its directory"))), (0o755, 0o700));
        let error = prepare(&first, None).expect_err("a directory is not shared");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn the_directory_belongs_to_the_workers_user() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: only root can give a directory away");
            return;
        }
        let folder = folder();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).expect("changed");
        let path = path(folder.path(), "sales", 0, 1);
        prepare(&path, Some((65_534, 65_533))).expect("made");
        let metadata = fs::metadata(path.parent().expect("its directory")).expect("it is there");
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (65_534, 65_533, 0o700));
    }

    #[test]
    fn a_user_who_may_not_come_as_far_is_told_where_it_ends() {
        let folder = folder();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("changed");
        let stranger = nix::unistd::geteuid().as_raw() + 65_533;
        let path = path(&folder.path().join("run"), "sales", 0, 1);
        let error = prepare(&path, Some((stranger, stranger))).expect_err("it could not reach its socket");
        let shown = folder.path().display();
        assert_eq!(error.to_string(), format!("its user may not pass through {shown} (mode 0700)"));
        assert!(!path.parent().expect("its directory").exists());
    }

    #[test]
    fn what_a_dead_process_left_is_removed_and_what_lives_or_is_anothers_stays() {
        let folder = folder();
        let make = |app: &str, number: u32, incarnation: u64| {
            let path = path(folder.path(), app, number, incarnation);
            prepare(&path, None).expect("made");
            let listener = UnixListener::bind(&path).expect("bound");
            (path, listener)
        };
        let (dead, listener) = make("sales", 1, 1 << 32);
        drop(listener);
        let (other, listener) = make("sales", 11, 1 << 32);
        drop(listener);
        let (living, _listener) = make("sales", 1, 2 << 32);
        remove_stale(folder.path(), "sales", 1);
        assert!(!dead.parent().expect("its directory").exists());
        assert!(living.exists() && other.exists());
    }

    #[test]
    fn the_longest_path_is_that_of_the_last_worker() {
        let longest = longest_path(Path::new("/run/homing"), "sales", 1024);
        let any = path(Path::new("/run/homing"), "sales", 1023, u64::MAX);
        assert_eq!(longest.as_os_str().len(), any.as_os_str().len());
        let default = longest_path(Path::new("/run/homing"), &"x".repeat(64), 1024);
        assert!(default.as_os_str().len() <= PATH_BYTES_MAX, "by default every name fits");
    }
}
