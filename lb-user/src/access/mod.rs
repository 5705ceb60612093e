//! The access log: a line for each request of the HTTP path, with where it went and why.
//!
//! Who serves a request fills a [`Line`] and lets it go; a thread of its own makes text of it and writes. Serving never
//! waits for a disk: what the thread cannot take is dropped, and counted.

mod line;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

pub use line::{Fate, Line};

/// Lines that wait to be written.
const WAITING_MAX: usize = 8_192;

/// What is written where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub path: PathBuf,
    pub format: Format,
    /// Targets are written with their query, where people put secrets.
    pub query: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As Apache and nginx write it, with what homing has to say behind.
    Combined,
    /// An object a line.
    Json,
}

/// Is told of lines that are not written, because the disk is full, or slower than what there is to write.
pub type Dropped = Arc<dyn Fn(u64) + Send + Sync>;

/// The log. Dropped, it is written to its end.
pub struct AccessLog {
    lines: Option<SyncSender<Line>>,
    writer: Option<JoinHandle<()>>,
    dropped: Dropped,
    query: bool,
}

impl AccessLog {
    /// Opens the file, or makes it (mode 0640), and starts the thread.
    ///
    /// # Errors
    /// When the file cannot be opened for appending, or there is no thread to be had.
    pub fn open(settings: &Settings, dropped: Dropped) -> std::io::Result<Self> {
        let (sender, lines) = sync_channel(WAITING_MAX);
        let writer = writer::Writer::open(settings, Arc::clone(&dropped))?;
        let writer = std::thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run(&lines))?;
        Ok(Self { lines: Some(sender), writer: Some(writer), dropped, query: settings.query })
    }

    /// Whether lines are to have the query of their target.
    pub fn wants_query(&self) -> bool {
        self.query
    }

    pub fn write(&self, line: Line) {
        let sender = self.lines.as_ref().expect("taken by drop alone");
        if sender.try_send(line).is_err() {
            (self.dropped)(1);
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        // The thread ends with the last line.
        drop(self.lines.take());
        if let Some(writer) = self.writer.take() {
            drop(writer.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn open(path: &Path) -> AccessLog {
        AccessLog::open(&settings(path), Arc::new(|_| panic!("a line is dropped"))).unwrap()
    }

    fn settings(path: &Path) -> Settings {
        Settings { path: path.to_owned(), format: Format::Json, query: false }
    }

    fn numbered(number: u16) -> Line {
        Line { status: number, ..line::tests::line() }
    }

    /// The statuses of the lines in the file.
    fn statuses(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap();
        let status = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["status"].as_u64().unwrap();
        text.lines().map(status).collect()
    }

    #[test]
    fn every_line_is_there_when_the_log_is_closed_in_the_order_in_which_it_was_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        for round in 0..2 {
            let log = open(&path);
            (0..500).for_each(|number| log.write(numbered(round * 500 + number)));
            drop(log);
        }
        assert_eq!(statuses(&path), (0..1_000).collect::<Vec<_>>(), "the second one appends");
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn a_file_that_was_renamed_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let log = open(&path);
        log.write(numbered(1));
        while fs::read(&path).unwrap().is_empty() {
            std::thread::yield_now();
        }
        fs::rename(&path, &old).unwrap();
        log.write(numbered(2));
        drop(log);
        assert_eq!((statuses(&old), statuses(&path)), (vec![1], vec![2]));
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_keeps_nobody() {
        // Every write to it fails as on a full disk.
        let dropped = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&dropped);
        let count: Dropped = Arc::new(move |lines| {
            count.fetch_add(lines, Ordering::Relaxed);
        });
        let log = AccessLog::open(&settings(Path::new("/dev/full")), Arc::clone(&count)).unwrap();
        (0..100).for_each(|number| log.write(numbered(number)));
        drop(log);
        assert_eq!(dropped.load(Ordering::Relaxed), 100);
        let nowhere = AccessLog::open(&settings(Path::new("/nowhere/access.log")), count);
        assert!(nowhere.is_err());
    }
}
