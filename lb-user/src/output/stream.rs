//! One worker's output as one stream, read at places that stay the same while its files are rotated.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, SeekFrom};
use rustix::io::Errno;

use super::name;

/// Counts, on a worker's file, the bytes that were taken out of its head, and tells when that was last done.
const CUT_ATTRIBUTE: &str = "user.homing.cut";

/// Tries for a lock on a file, and between two of them. Who does not give it back in time is not waited for.
const LOCK_TRIES: u32 = 100;
const LOCK_AGAIN: Duration = Duration::from_millis(2);

/// A place in a stream: bytes since the worker's file was made. Below 0 where old files are older than that count.
pub type Place = i64;

/// What was taken out of a file's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) bytes: u64,
    /// Unix time, seconds.
    pub(super) at: u64,
}

impl Cut {
    fn of(file: &File) -> Option<Self> {
        let mut value = [0_u8; 16];
        let length = rustix::fs::fgetxattr(file, CUT_ATTRIBUTE, &mut value[..]).ok()?;
        let (bytes, at) = value.split_at(8);
        (length == value.len()).then(|| {
            Some(Self {
                bytes: u64::from_le_bytes(bytes.try_into().ok()?),
                at: u64::from_le_bytes(at.try_into().ok()?),
            })
        })?
    }

    pub(super) fn write(self, file: &File) -> rustix::io::Result<()> {
        let value = [self.bytes.to_le_bytes(), self.at.to_le_bytes()].concat();
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
        self.hole = match rustix::fs::seek(&self.file, SeekFrom::Data(0)) {
            Ok(start) => start.min(self.size),
            // Nothing but a hole, or nothing at all.
            Err(Errno::NXIO) => self.size,
            // A file system that knows no holes.
            Err(_) => 0,
        };
        Ok(())
    }

    /// Where its first byte, hole or not, is in the stream.
    fn base(&self) -> Place {
        self.cut.unwrap_or_default().bytes.cast_signed()
    }

    /// Where what it holds begins.
    pub(super) fn start(&self) -> Place {
        self.base() + self.hole.cast_signed()
    }

    /// Where the worker appends.
    pub(super) fn end(&self) -> Place {
        self.base() + self.size.cast_signed()
    }

    /// Until the file is closed. Who cannot have it goes on without: a reader may see some bytes twice or miss some, once.
    pub(super) fn lock(&self, operation: FlockOperation) {
        for _ in 0..LOCK_TRIES {
            if rustix::fs::flock(&self.file, operation) != Err(Errno::WOULDBLOCK) {
                return;
            }
            std::thread::sleep(LOCK_AGAIN);
        }
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        let metadata = self.file.metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }
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
        let Some(mut live) = Live::open(path, OpenOptions::new().read(true))? else { return Ok(None) };
        live.lock(FlockOperation::NonBlockingLockShared);
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
        (1..).map_while(move |age| {
            let path = name::old(&self.path, age);
            let metadata = path.symlink_metadata().ok().filter(std::fs::Metadata::is_file)?;
            let start = end - metadata.len().cast_signed();
            Some((path, start, std::mem::replace(&mut end, start)))
        })
    }

    /// Reads from `place` on, and says how much; 0 at the end, and where nothing is kept any more.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn read(&self, place: Place, buffer: &mut [u8]) -> io::Result<usize> {
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
