//! The thread that writes: a file that is appended to, and made anew when somebody has taken it away (logrotate).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use super::{Dropped, Format, Line, Settings};
use crate::trouble::Trouble;

/// Text that is written at once, where so much is there.
const BATCH_BYTES: usize = 64 << 10;

pub(super) struct Writer {
    path: PathBuf,
    format: Format,
    file: File,
    dropped: Dropped,
    trouble: Trouble,
    /// The last thing in the file is the beginning of a line.
    is_torn: bool,
}

impl Writer {
    pub(super) fn open(settings: &Settings, dropped: Dropped) -> io::Result<Self> {
        let file = append_to(&settings.path)?;
        let (path, format) = (settings.path.clone(), settings.format);
        Ok(Self { path, format, file, dropped, trouble: Trouble::default(), is_torn: false })
    }

    /// Until nobody is there to tell of a line.
    pub(super) fn run(mut self, lines: &Receiver<Line>) {
        let mut text = String::with_capacity(BATCH_BYTES);
        while let Ok(first) = lines.recv() {
            first.write(self.format, &mut text);
            let mut count = 1;
            while text.len() < BATCH_BYTES
                && let Ok(line) = lines.try_recv()
            {
                line.write(self.format, &mut text);
                count += 1;
            }
            if let Err(error) = self.write(&text) {
                (self.dropped)(count);
                if self.trouble.is_news(Instant::now()) {
                    tracing::warn!(path = %self.path.display(), %error, "the access log cannot be written");
                }
            } else if self.trouble.is_over() {
                tracing::info!(path = %self.path.display(), "the access log is written again");
            }
            text.clear();
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let file = self.file.metadata()?;
        let is_there = self.path.metadata().is_ok_and(|at| (at.dev(), at.ino()) == (file.dev(), file.ino()));
        if !is_there {
            self.file = append_to(&self.path)?;
            self.is_torn = false;
        }
        if self.is_torn {
            self.write_all(b"\n")?;
        }
        self.write_all(text.as_bytes())
    }

    /// As [`io::Write::write_all`], and knows whether it stopped midway.
    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.file.write(bytes)?;
            bytes = &bytes[written..];
            self.is_torn = !bytes.is_empty();
        }
        Ok(())
    }
}

fn append_to(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}
