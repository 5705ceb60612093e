//! One worker's file made shorter, without the worker's help: its head is copied to an old file, then taken out.
//!
//! The worker appends all the while. `O_APPEND` makes each of its writes go to the end as it is then, and the file system
//! takes the head out between two of them, so no byte is lost. A cut that a killed homing left undone is done by the next.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom};

use super::stream::{Cut, Live, Place, ROTATOR_WAITS, uncut};
use super::{Limits, name};

/// Copied between two looks whether homing ends.
const CHUNK: u64 = 8 << 20;
/// A file that grew by this part of its limit since the last look, which was a moment ago, grows faster than it is copied.
const FLOOD: u64 = 16;
/// Bytes younger than this are not waited for to be on the disk: the kernel would not have them there yet, either.
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
        let has_attributes = Cut::default().write(&file).is_ok();
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

/// What a look at a file has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Looked {
    /// Where the worker appends.
    pub(super) end: Place,
    /// It still is too large.
    pub(super) again: bool,
}

/// Makes the file shorter by one old file at most, where it is too large or too old. `seen` is where it ended at the last
/// look. `None` where there is no such file.
///
/// # Errors
/// When the file or its old ones cannot be read or written, as on a full disk.
pub(super) fn rotate(
    path: &Path,
    limits: Limits,
    ground: Ground,
    seen: Option<Place>,
    now: SystemTime,
    stop: &AtomicBool,
) -> io::Result<Option<Looked>> {
    let Some(mut live) = Live::open(path, OpenOptions::new().read(true).write(true))? else { return Ok(None) };
    let end = live.end();
    let done = Looked { end, again: false };
    let held = (end - live.start()).cast_unsigned();
    let age = age(path, &live, limits, ground, now);
    let is_large = held > limits.size_max;
    if !is_large && age < limits.age_max {
        return Ok(Some(done));
    }
    if ground.way != Way::Truncate
        && let Some(length) = uncut(path, &live)
    {
        live.lock(FlockOperation::NonBlockingLockExclusive, ROTATOR_WAITS);
        cut(&mut live, length, ground, now)?;
        return Ok(Some(Looked { end: live.end(), again: true }));
    }
    let grown = seen.map_or(0, |seen| end - seen).max(0).cast_unsigned();
    // Most of it came since the last look, or the file itself is young.
    let is_young = grown > held / 2 || age < YOUNG;
    // Files that the pieces of this one are going to drive out make room for it now.
    let pieces = u32::try_from(held.saturating_sub(1) / limits.size_max).unwrap_or(u32::MAX);
    (1..=limits.keep).rev().take(pieces as usize).try_for_each(|age| remove(&name::old(path, age)))?;
    if ground.way != Way::Truncate && limits.keep > 0 {
        let kept = limits.size_max * u64::from(limits.keep);
        let excess = if held > kept + limits.size_max / 2 { ground.whole_blocks(held - kept) } else { 0 };
        if excess > 0 {
            live.lock(FlockOperation::NonBlockingLockExclusive, ROTATOR_WAITS);
            cut(&mut live, excess, ground, now)?;
        }
        // Copying would not keep up with a worker that writes as fast as it can: the file alone holds what is kept, until
        // that is over.
        if excess > 0 || grown > limits.size_max / FLOOD {
            return Ok(Some(Looked { end: live.end(), again: true }));
        }
    }
    let goes = match limits.keep {
        // The older half: then there always is something to read.
        0 if is_large => held.saturating_sub(limits.size_max / 2),
        _ => limits.size_max,
    };
    // One byte stays: a file system does not collapse all of a file.
    let length = ground.whole_blocks(goes.min(held.saturating_sub(1)));
    if length == 0 {
        return Ok(Some(done));
    }
    if limits.keep == 0 {
        live.lock(FlockOperation::NonBlockingLockExclusive, ROTATOR_WAITS);
    } else {
        // It goes in any case, and its room may be needed.
        remove(&name::old(path, limits.keep))?;
        let part = name::part(path);
        let copied = copy(&live, &part, length, is_young, stop);
        let copied = copied.inspect_err(|_| drop(fs::remove_file(&part)))?;
        live.lock(FlockOperation::NonBlockingLockExclusive, ROTATOR_WAITS);
        if ground.way == Way::Truncate {
            append_rest(&live, copied, length)?;
        }
        // It reaches the disk before the cut does: file systems write such changes down in their order.
        move_up(path, &part, limits.keep)?;
    }
    cut(&mut live, length, ground, now)?;
    let again = (live.end() - live.start()).cast_unsigned() > limits.size_max;
    Ok(Some(Looked { end: live.end(), again }))
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
    // Where the file system knows no attributes, a homing killed before the cut leaves these bytes twice.
    let _ = Cut { bytes: live.start().cast_unsigned(), ..Cut::default() }.write(&copy);
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
    // A homing that was killed at this left a gap: the files before it move up to fill it.
    let free = (1..keep).find(|&age| !name::old(path, age).exists()).unwrap_or(keep);
    for age in (1..free).rev() {
        fs::rename(name::old(path, age), name::old(path, age + 1))?;
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
    // A hole that is there already goes too.
    let until = live.hole + length;
    let gone = live.gone();
    if ground.way != Way::Truncate {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&live.file, punch, 0, until)?;
    }
    match ground.way {
        Way::Collapse => {
            // Now they are gone for every reader, and nothing has moved. What moves is written down first: by the hole one
            // sees whether it has, wherever homing is killed.
            let done = Cut { bytes: gone + until, at, under_way: 0 };
            Cut { under_way: until, ..done }.write(&live.file)?;
            let collapsed = rustix::fs::fallocate(&live.file, FallocateFlags::COLLAPSE_RANGE, 0, until);
            match collapsed {
                Ok(()) => done.write(&live.file)?,
                Err(_) => Cut { bytes: gone, ..done }.write(&live.file)?,
            }
            collapsed?;
        }
        Way::Punch => drop(Cut { bytes: gone, at, under_way: 0 }.write(&live.file)),
        Way::Truncate => {
            let bytes = gone + live.file.metadata()?.len();
            let _ = Cut { bytes, at, under_way: 0 }.write(&live.file);
            live.file.set_len(0)?;
        }
    }
    live.look()
}

#[cfg(test)]
mod tests;
