//! One worker's file made shorter, without the worker's help: its head is copied to an old file, then taken out.
//!
//! The worker appends all the while. `O_APPEND` makes each of its writes go to the end as it is then, and the file system
//! takes the head out between two of them, so no byte is lost. A homing that is killed between copy and cut leaves some
//! bytes twice.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom};

use super::stream::{Cut, Live};
use super::{Limits, name};

/// Copied between two looks whether homing ends.
const CHUNK: u64 = 8 << 20;
/// What is younger is not waited for to be on the disk: the kernel takes longer than this to write it there by itself.
const YOUNG: Duration = Duration::from_secs(5);
/// Bounds for the block size that a file system names; heads are cut at blocks.
const BLOCK_MIN: u64 = 4 << 10;
const BLOCK_MAX: u64 = 64 << 10;
/// Name of a file that is made to see what the file system can do.
const PROBE: &str = ".homing-probe";

/// How a file system takes the head out of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// What is behind it moves up (ext4, xfs).
    Collapse,
    /// It becomes a hole: no space is taken, the size stays (tmpfs, btrfs).
    Punch,
    /// Not at all: the rest is copied too, and the file emptied. What is written in between is lost.
    Truncate,
}

/// What the file system of the output does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ground {
    pub(super) way: Way,
    block: u64,
    /// Files can be told when they were last made shorter.
    has_attributes: bool,
}

impl Ground {
    /// Tries it out.
    pub(super) fn of(dir: &Path) -> io::Result<Self> {
        let path = dir.join(PROBE);
        let _ = fs::remove_file(&path);
        let ground = Self::by_trial(&path);
        let _ = fs::remove_file(&path);
        ground
    }

    fn by_trial(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let block = rustix::fs::fstatvfs(&file)?.f_bsize.clamp(BLOCK_MIN, BLOCK_MAX);
        file.write_all(&vec![b'x'; 2 * block as usize])?;
        let has_attributes = Cut { bytes: 0, at: 0 }.write(&file).is_ok();
        let collapse = FallocateFlags::COLLAPSE_RANGE;
        if has_attributes && rustix::fs::fallocate(&file, collapse, 0, block).is_ok() && file.metadata()?.len() == block
        {
            return Ok(Self { way: Way::Collapse, block, has_attributes });
        }
        let punched = rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, block);
        // A hole that cannot be found again would be copied again.
        let is_seen = rustix::fs::seek(&file, SeekFrom::Data(0)) == Ok(block);
        let way = if punched.is_ok() && is_seen { Way::Punch } else { Way::Truncate };
        Ok(Self { way, block, has_attributes })
    }

    fn whole_blocks(self, bytes: u64) -> u64 {
        bytes - bytes % self.block
    }
}

/// Makes the file shorter by one old file at most, where it is too large or too old; says whether it still is.
///
/// # Errors
/// When the file or its old ones cannot be read or written, as on a full disk.
pub(super) fn rotate(
    path: &Path,
    limits: Limits,
    ground: Ground,
    now: SystemTime,
    stop: &AtomicBool,
) -> io::Result<bool> {
    let Some(mut live) = Live::open(path, OpenOptions::new().read(true).write(true))? else { return Ok(false) };
    let held = (live.end() - live.start()).cast_unsigned();
    let age = age(path, &live, limits, ground, now);
    let is_large = held > limits.size_max;
    if !is_large && age < limits.age_max {
        return Ok(false);
    }
    // What would be driven out at once is not copied first.
    let excess = ground.whole_blocks(held.saturating_sub(limits.size_max * (u64::from(limits.keep) + 1)));
    let excess = if ground.way == Way::Truncate { 0 } else { excess };
    if excess > 0 {
        live.lock(FlockOperation::NonBlockingLockExclusive);
        cut(&mut live, excess, ground, now)?;
        rustix::fs::flock(&live.file, FlockOperation::Unlock)?;
    }
    let held = held - excess;
    let goes = match limits.keep {
        // The older half: then there always is something to read.
        0 if is_large => held.saturating_sub(limits.size_max / 2),
        _ => limits.size_max,
    };
    // One byte stays: a file system does not collapse all of a file.
    let length = ground.whole_blocks(goes.min(held.saturating_sub(1)));
    if length == 0 {
        return Ok(false);
    }
    if limits.keep == 0 {
        live.lock(FlockOperation::NonBlockingLockExclusive);
    } else {
        // It goes in any case, and its room may be needed.
        remove(&name::old(path, limits.keep))?;
        let part = name::part(path);
        let copied = copy(&live, &part, length, age < YOUNG, stop);
        let copied = copied.inspect_err(|_| drop(fs::remove_file(&part)))?;
        live.lock(FlockOperation::NonBlockingLockExclusive);
        if ground.way == Way::Truncate {
            append_rest(&live, copied, length)?;
        }
        move_up(path, &part, limits.keep)?;
        if age >= YOUNG
            && let Some(dir) = path.parent()
        {
            File::open(dir)?.sync_all()?;
        }
    }
    cut(&mut live, length, ground, now)?;
    Ok((live.end() - live.start()).cast_unsigned() > limits.size_max)
}

/// For how long the file has been written to.
fn age(path: &Path, live: &Live, limits: Limits, ground: Ground, now: SystemTime) -> Duration {
    let last_cut = live.cut.map(|cut| UNIX_EPOCH + Duration::from_secs(cut.at));
    let by_old = || name::old(path, 1).symlink_metadata().ok()?.modified().ok();
    let since = match (last_cut, limits.keep) {
        (Some(at), _) => Some(at),
        // With nothing to tell when it was last made shorter, only its size counts.
        (None, 0) if !ground.has_attributes => None,
        (None, _) => by_old().or_else(|| live.file.metadata().ok()?.created().ok()),
    };
    since.and_then(|since| now.duration_since(since).ok()).unwrap_or(Duration::ZERO)
}

/// Copies the head of the file.
fn copy(live: &Live, part: &Path, length: u64, is_young: bool, stop: &AtomicBool) -> io::Result<File> {
    let metadata = live.file.metadata()?;
    remove(part)?;
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(part)?;
    // Who may read the one may read the other.
    copy.set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o777))?;
    let _ = fchown(&copy, Some(metadata.uid()), Some(metadata.gid()));
    rustix::fs::seek(&live.file, SeekFrom::Start(live.hole))?;
    let mut left = length;
    while left > 0 {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match io::copy(&mut (&live.file).take(left.min(CHUNK)), &mut copy)? {
            0 => return Err(io::Error::other("it became shorter while it was copied")),
            copied => left -= copied,
        }
    }
    if !is_young {
        copy.sync_all()?;
    }
    Ok(copy)
}

/// What came since the copy was made, for a file that is emptied.
fn append_rest(live: &Live, mut copy: File, length: u64) -> io::Result<()> {
    rustix::fs::seek(&live.file, SeekFrom::Start(live.hole + length))?;
    io::copy(&mut &live.file, &mut copy).map(drop)
}

fn move_up(path: &Path, part: &Path, keep: u32) -> io::Result<()> {
    for age in (1..keep).rev() {
        match fs::rename(name::old(path, age), name::old(path, age + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(part, name::old(path, 1))
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Takes `length` bytes, whole blocks, out of the head.
fn cut(live: &mut Live, length: u64, ground: Ground, now: SystemTime) -> io::Result<()> {
    let at = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let before = live.cut;
    // A hole that is there already goes too.
    let until = live.hole + length;
    let bytes = before.unwrap_or_default().bytes;
    match ground.way {
        Way::Collapse => {
            // Before the cut, under the lock: between the two nobody reads.
            Cut { bytes: bytes + until, at }.write(&live.file)?;
            if let Err(error) = rustix::fs::fallocate(&live.file, FallocateFlags::COLLAPSE_RANGE, 0, until) {
                before.unwrap_or(Cut { bytes: 0, at }).write(&live.file)?;
                return Err(error.into());
            }
        }
        Way::Punch => {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&live.file, punch, 0, until)?;
            let _ = Cut { bytes, at }.write(&live.file);
        }
        Way::Truncate => {
            let _ = Cut { bytes: bytes + live.file.metadata()?.len(), at }.write(&live.file);
            live.file.set_len(0)?;
        }
    }
    live.look()
}

#[cfg(test)]
mod tests;
