//! One worker's output as one stream, read at places that stay the same while its files are rotated.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, SeekFrom};
use rustix::io::Errno;

use super::name;

/// Counts, on a worker's file, the bytes that were taken out of its head, and tells when that was last done. On an old file
/// it counts what was taken out before.
const CUT_ATTRIBUTE: &str = "user.homing.cut";

/// Between two tries for a lock on a file.
const LOCK_AGAIN: Duration = Duration::from_millis(2);
/// How long the one who rotates waits for readers, who are quick; a worker may lock its file, too, and never let go.
pub(super) const ROTATOR_WAITS: Duration = Duration::from_secs(1);
/// How long a reader waits for the one who rotates, who may wait for a disk.
const READER_WAITS: Duration = Duration::from_secs(10);
/// How long he waits whom others wait for.
pub(super) const BRIEF: Duration = Duration::from_millis(100);

/// A place in a stream: bytes since the worker's file was made. Below 0 where old files are older than that count.
pub type Place = i64;

/// What was taken out of a file's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) bytes: u64,
    /// Unix time, seconds.
    pub(super) at: u64,
    /// How many of them are being taken out just now, or were when homing was killed. They are a hole until they are.
    pub(super) under_way: u64,
}

impl Cut {
    fn of(file: &File) -> Option<Self> {
        let mut value = [0_u8; 24];
        let length = rustix::fs::fgetxattr(file, CUT_ATTRIBUTE, &mut value[..]).ok()?;
        let mut numbers = value.chunks_exact(8).map(|number| number.try_into().map_or(0, u64::from_le_bytes));
        let (bytes, at, under_way) = (numbers.next()?, numbers.next()?, numbers.next()?);
        (length == value.len()).then_some(Self { bytes, at, under_way })
    }

    pub(super) fn write(self, file: &File) -> rustix::io::Result<()> {
        let value = [self.bytes, self.at, self.under_way].map(u64::to_le_bytes).concat();
        rustix::fs::fsetxattr(file, CUT_ATTRIBUTE, &value, rustix::fs::XattrFlags::empty())
    }
}

/// The file that the worker appends to, at one moment.
pub(super) struct Live {
    pub(super) file: File,
    pub(super) cut: Option<Cut>,
    pub(super) size: u64,
    /// Bytes at its head that are a hole: taken out, without those behind them moving up.
    pub(super) hole: u64,
}

impl Live {
    /// `None` where there is no such file.
    pub(super) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<Option<Self>> {
        // A pipe in its place is not waited for, and a link not followed.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match options.custom_flags(flags.bits().cast_signed()).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut live = Self { file, cut: None, size: 0, hole: 0 };
        live.look()?;
        Ok(Some(live))
    }

    /// Sees it as it is now.
    pub(super) fn look(&mut self) -> io::Result<()> {
        self.cut = Cut::of(&self.file);
        self.size = self.file.metadata()?.len();
        self.hole = self.hole_now();
        Ok(())
    }

    fn hole_now(&self) -> u64 {
        match rustix::fs::seek(&self.file, SeekFrom::Data(0)) {
            Ok(start) => start.min(self.size),
            // Nothing but a hole, or nothing at all.
            Err(Errno::NXIO) => self.size,
            // A file system that knows no holes.
            Err(_) => 0,
        }
    }

    /// Nothing was taken out since it was looked at.
    fn is_unchanged(&self) -> bool {
        Cut::of(&self.file) == self.cut && self.hole_now() == self.hole
    }

    /// Bytes before its first one, which may be a hole.
    pub(super) fn gone(&self) -> u64 {
        let cut = self.cut.unwrap_or_default();
        // A worker only appends: a hole at the head is one that was to be taken out.
        let is_there = cut.under_way > 0 && self.hole >= cut.under_way;
        if is_there { cut.bytes - cut.under_way } else { cut.bytes }
    }

    /// Where its first byte, hole or not, is in the stream.
    fn base(&self) -> Place {
        self.gone().cast_signed()
    }

    /// Where what it holds begins.
    pub(super) fn start(&self) -> Place {
        self.base() + self.hole.cast_signed()
    }

    /// Where the worker appends.
    pub(super) fn end(&self) -> Place {
        self.base() + self.size.cast_signed()
    }

    /// Until the file is closed. Who cannot have it in time goes on without.
    pub(super) fn lock(&self, operation: FlockOperation, patience: Duration) {
        let end = Instant::now() + patience;
        while rustix::fs::flock(&self.file, operation) == Err(Errno::WOULDBLOCK) && Instant::now() < end {
            std::thread::sleep(LOCK_AGAIN);
        }
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        let metadata = self.file.metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }
}

/// The length of the newest old file, where what it holds still is in the worker's file, too: homing was killed between
/// copy and cut.
pub(super) fn uncut(path: &Path, live: &Live) -> Option<u64> {
    let old = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(name::old(path, 1))
        .ok()?;
    let begins = Cut::of(&old)?.bytes.cast_signed();
    let length = old.metadata().ok()?.len();
    (begins == live.start() && length.cast_signed() < live.end() - live.start()).then_some(length)
}

/// All files of a worker at one moment: while this is there, nothing is rotated.
pub struct View {
    path: PathBuf,
    live: Live,
}

impl View {
    /// `None` where the worker never wrote, or its file was removed.
    ///
    /// # Errors
    /// When the worker's file cannot be read.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        Self::open_within(path, READER_WAITS)
    }

    pub(super) fn open_within(path: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let Some(mut live) = Live::open(path, OpenOptions::new().read(true))? else { return Ok(None) };
        live.lock(FlockOperation::NonBlockingLockShared, patience);
        live.look()?;
        Ok(Some(Self { path: path.to_owned(), live }))
    }

    /// Tells the worker's file from one that was made in its place.
    ///
    /// # Errors
    /// When the file system does not say.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        self.live.identity()
    }

    /// Where the oldest byte is that is kept.
    pub fn start(&self) -> Place {
        self.stretches().last().map_or(self.live.start(), |(_, start, _)| start)
    }

    /// Where the next byte will be.
    pub fn end(&self) -> Place {
        self.live.end()
    }

    /// Old files, newest first, with the places where each begins and ends.
    fn stretches(&self) -> impl Iterator<Item = (PathBuf, Place, Place)> + '_ {
        let mut end = self.live.start();
        let newest = if uncut(&self.path, &self.live).is_some() { 2 } else { 1 };
        (newest..).map_while(move |age| {
            let path = name::old(&self.path, age);
            let metadata = path.symlink_metadata().ok().filter(std::fs::Metadata::is_file)?;
            let start = end - metadata.len().cast_signed();
            Some((path, start, std::mem::replace(&mut end, start)))
        })
    }

    /// Reads from `place` on, and says how much; 0 at the end, and where nothing is kept any more.
    ///
    /// # Errors
    /// When a file cannot be read. `Interrupted`: it was rotated all the same, and is to be looked at anew.
    pub fn read(&self, place: Place, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.read_unchecked(place, buffer);
        // Without the lock the bytes may be of another place.
        if self.live.is_unchanged() { read } else { Err(io::ErrorKind::Interrupted.into()) }
    }

    fn read_unchecked(&self, place: Place, buffer: &mut [u8]) -> io::Result<usize> {
        if place >= self.live.start() {
            return self.live.file.read_at(buffer, (place - self.live.base()).cast_unsigned());
        }
        match self.stretches().find(|(_, start, _)| place >= *start) {
            Some((path, start, end)) => {
                let room = buffer.len().min((end - place) as usize);
                File::open(path)?.read_at(&mut buffer[..room], (place - start).cast_unsigned())
            }
            None => Ok(0),
        }
    }

    /// Where the last `count` lines begin; a line that has no end yet is one.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn last_lines(&self, count: u64) -> io::Result<Place> {
        const CHUNK: usize = 64 << 10;
        let (start, end) = (self.start(), self.end());
        let mut buffer = vec![0; CHUNK];
        let mut to_find = count;
        let mut upper = end;
        if count == 0 {
            return Ok(end);
        }
        while upper > start {
            let lower = start.max(upper - CHUNK as Place);
            let chunk = &mut buffer[..(upper - lower) as usize];
            self.read_whole(lower, chunk)?;
            for (index, _) in chunk.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                let after = lower + index as Place + 1;
                if after == end {
                    continue;
                }
                to_find -= 1;
                if to_find == 0 {
                    return Ok(after);
                }
            }
            upper = lower;
        }
        Ok(start)
    }

    /// Fills the buffer; what cannot be had is left as it is.
    fn read_whole(&self, place: Place, buffer: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read(place + done as Place, &mut buffer[done..])? {
                0 => break,
                read => done += read,
            }
        }
        Ok(())
    }

    /// At most `bytes_max` bytes before the end, but none before `since`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn tail(&self, bytes_max: u64, since: Place) -> io::Result<Vec<u8>> {
        let from = self.start().max(since).max(self.end() - bytes_max.cast_signed());
        let mut bytes = vec![0; usize::try_from(self.end() - from).unwrap_or(0)];
        self.read_whole(from, &mut bytes)?;
        Ok(bytes)
    }
}
