//! The state file on disk: written after every change, read at start, set aside when it cannot be believed.
//!
//! A save is in the page cache when it returns, so that a homing killed right after it has forgotten nothing. That it is
//! on the disk, too, for a machine that goes down, is waited for elsewhere: that may take long, and clients do not wait.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::chore::Chore;
use super::persist::{Refusal, Saved};
use crate::trouble::Trouble;

/// On the disk.
const FILE: &str = "state.json";
/// Being written.
const DRAFT: &str = "state.json.draft";
/// Whole, and newer than the others.
const NEXT: &str = "state.json.next";
/// Whole, on its way to the disk, and newer than [`FILE`].
const SYNCING: &str = "state.json.syncing";
/// What a file that cannot be believed is called, with the Unix time of its discovery.
const BAD: &str = "state.json.bad-";
/// Kept of those.
const BAD_MAX: usize = 2;
/// Far beyond what all apps together can make; a larger file is another's.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Commands may hold what is not for everyone.
const MODE: u32 = 0o600;
/// Between looks whether the last save is on the disk, at the end.
const FINISH_LOOK: Duration = Duration::from_millis(5);

/// What the last run left.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// It ended in order, or there was none.
    Nothing,
    State(Saved),
    /// Something that cannot be believed. It is at `aside` now, if it could be moved.
    Refused {
        why: Refusal,
        aside: Option<PathBuf>,
    },
}

impl Found {
    /// The apps' numbers in the datapath's tables.
    pub(super) fn numbers(&self) -> HashMap<String, u32> {
        match self {
            Self::State(saved) => saved.numbers(),
            Self::Nothing | Self::Refused { .. } => HashMap::new(),
        }
    }
}

/// Keeps the state file of one directory.
pub(super) struct Saver {
    dir: PathBuf,
    /// A task takes saves to the disk, one after the other.
    syncing: Arc<Chore>,
    /// Why the last save failed, which is to be tried again.
    unsaved: Option<String>,
    trouble: Arc<Mutex<Trouble>>,
}

impl Saver {
    /// Reads what the last run left.
    pub(super) fn open(dir: &Path) -> (Self, Found) {
        let saver = Self { dir: dir.to_owned(), syncing: Arc::default(), unsaved: None, trouble: Arc::default() };
        (saver, find(dir))
    }

    /// Saves, in one step: a reader, or the next run, finds the former state or this one. Needs a tokio runtime.
    pub(super) fn save(&mut self, saved: &Saved) {
        let result = write(&self.dir, &saved.encode());
        self.unsaved = result.as_ref().err().map(ToString::to_string);
        match result {
            Ok(()) => self.sync(),
            Err(error) => say(&self.trouble, &self.dir, &error),
        }
    }

    /// Whether the last save failed.
    pub(super) fn is_behind(&self) -> bool {
        self.unsaved.is_some()
    }

    /// Why it did.
    pub(super) fn unsaved(&self) -> Option<&str> {
        self.unsaved.as_deref()
    }

    fn sync(&self) {
        if !self.syncing.falls_to_who_asks() {
            return;
        }
        let (dir, syncing, trouble) = (self.dir.clone(), Arc::clone(&self.syncing), Arc::clone(&self.trouble));
        tokio::task::spawn_blocking(move || {
            syncing.work(|| match to_disk(&dir) {
                Ok(()) => {
                    if trouble.lock().unwrap_or_else(PoisonError::into_inner).is_over() {
                        tracing::info!("the state is saved again");
                    }
                }
                Err(error) => say(&trouble, &dir, &error),
            });
        });
    }

    /// Waits until no save is under way: the files may be another's then.
    pub(super) async fn settle(&self) {
        while !self.syncing.is_done() {
            tokio::time::sleep(FINISH_LOOK).await;
        }
    }

    /// Removes the files: nothing is left to adopt.
    pub(super) async fn finish(self) {
        self.settle().await;
        remove_drafts(&self.dir);
        let _ = fs::remove_file(self.dir.join(FILE));
    }
}

fn say(trouble: &Mutex<Trouble>, dir: &Path, error: &io::Error) {
    if trouble.lock().unwrap_or_else(PoisonError::into_inner).is_news(Instant::now()) {
        tracing::warn!(
            %error, dir = %dir.display(),
            "the state cannot be saved; serving goes on, but if homing is killed now, workers started since are not \
             adopted. Make room in homing.state_dir: it is tried again"
        );
    }
}

fn write(dir: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = dir.join(DRAFT);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&draft)?;
    // What did not fit is removed: on a full disk every byte counts.
    let written = file.write_all(bytes).and_then(|()| fs::rename(&draft, dir.join(NEXT)));
    written.inspect_err(|_| drop(fs::remove_file(&draft)))
}

/// Takes the newest save to the disk and into its place.
fn to_disk(dir: &Path) -> io::Result<()> {
    let syncing = dir.join(SYNCING);
    match fs::rename(dir.join(NEXT), &syncing) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    File::open(&syncing)?.sync_all()?;
    fs::rename(&syncing, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn find(dir: &Path) -> Found {
    let path = dir.join(FILE);
    // Newer, where homing was killed before they had reached the disk. What a machine that went down left of them is
    // no loss: the file itself is whole then.
    for name in [NEXT, SYNCING] {
        let newer = dir.join(name);
        if let Some(saved) = read(&newer).ok().and_then(|bytes| Saved::decode(&bytes).ok())
            && fs::rename(&newer, &path).is_ok()
        {
            remove_drafts(dir);
            return Found::State(saved);
        }
    }
    remove_drafts(dir);
    let why = match read(&path).map(|bytes| Saved::decode(&bytes)) {
        Ok(Ok(saved)) => return Found::State(saved),
        Ok(Err(why)) => why,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
        Err(error) => Refusal::Unreadable(error.to_string()),
    };
    Found::Refused { why, aside: set_aside(dir) }
}

fn remove_drafts(dir: &Path) {
    for name in [DRAFT, NEXT, SYNCING] {
        let _ = fs::remove_file(dir.join(name));
    }
}

/// For whoever wants to know what was in it; where it is now.
fn set_aside(dir: &Path) -> Option<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let aside = dir.join(format!("{BAD}{now:010}"));
    fs::rename(dir.join(FILE), &aside).ok()?;
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut bad: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with(BAD)).collect();
    bad.sort();
    let old = bad.len().saturating_sub(BAD_MAX);
    for name in &bad[..old] {
        let _ = fs::remove_file(dir.join(name));
    }
    Some(aside)
}

#[cfg(test)]
mod tests {
    use super::super::persist::tests::saved;
    use super::*;

    fn other() -> Saved {
        Saved { last_ids: vec![1, 2, 3], ..saved() }
    }

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("readable").flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn the_last_of_many_saves_is_what_the_next_run_finds_at_any_time() {
        let dir = dir();
        let (mut saver, found) = Saver::open(dir.path());
        assert_eq!(found, Found::Nothing);
        for number in 0..200 {
            let state = Saved { last_ids: vec![number], ..saved() };
            saver.save(&state);
            assert!(!saver.is_behind());
            if number % 50 == 49 {
                // As if killed here. The task is at work on the files: they are read in the order in which it renames
                // them, so that none is missed on its way.
                let copy = self::dir();
                for name in [NEXT, SYNCING, FILE] {
                    if let Ok(bytes) = fs::read(dir.path().join(name)) {
                        fs::write(copy.path().join(name), bytes).expect("written");
                    }
                }
                assert_eq!(Saver::open(copy.path()).1, Found::State(state));
            }
        }
        saver.settle().await;
        assert_eq!(names(dir.path()), [FILE], "all is on the disk");
        assert_eq!(Saver::open(dir.path()).1, Found::State(Saved { last_ids: vec![199], ..saved() }));
        saver.finish().await;
        assert_eq!(names(dir.path()), [""; 0]);
        assert_eq!(Saver::open(dir.path()).1, Found::Nothing);
    }

    #[test]
    fn the_newest_whole_file_counts_and_a_torn_newer_one_does_not() {
        for (next, syncing, expected) in [
            (Some(other().encode()), Some(saved().encode()), other()),
            (None, Some(other().encode()), other()),
            (Some(other().encode()[..9].to_vec()), None, saved()),
            (Some(Vec::new()), Some(vec![0; 4096]), saved()),
        ] {
            let dir = dir();
            fs::write(dir.path().join(FILE), saved().encode()).expect("written");
            for (name, bytes) in [(NEXT, next), (SYNCING, syncing)] {
                if let Some(bytes) = bytes {
                    fs::write(dir.path().join(name), bytes).expect("written");
                }
            }
            assert_eq!(Saver::open(dir.path()).1, Found::State(expected));
            assert_eq!(names(dir.path()), [FILE], "no draft may count once more later");
        }
    }

    #[test]
    fn a_file_that_cannot_be_believed_is_set_aside_and_two_of_them_are_kept() {
        let dir = dir();
        for stale in ["1000000001", "1000000002"] {
            fs::write(dir.path().join(format!("{BAD}{stale}")), stale).expect("written");
        }
        fs::write(dir.path().join(FILE), "{ not json").expect("written");
        let Found::Refused { why: Refusal::NotWhole(_), aside: Some(aside) } = Saver::open(dir.path()).1 else {
            panic!("it was believed")
        };
        assert_eq!(fs::read_to_string(&aside).expect("set aside"), "{ not json");
        let names = names(dir.path());
        assert_eq!((names.len(), names[0].as_str()), (2, "state.json.bad-1000000002"), "{names:?}");
        assert_eq!(Saver::open(dir.path()).1, Found::Nothing, "it is asked about once");
    }

    #[test]
    fn what_is_no_file_is_set_aside_too() {
        let dir = dir();
        fs::create_dir(dir.path().join(FILE)).expect("made");
        assert!(matches!(
            Saver::open(dir.path()).1,
            Found::Refused { why: Refusal::Unreadable(_), aside: Some(aside) } if aside.is_dir()
        ));
    }

    #[tokio::test]
    async fn a_save_that_fails_leaves_the_former_state_and_is_known() {
        let dir = dir();
        let (mut saver, _) = Saver::open(dir.path());
        saver.save(&saved());
        saver.settle().await;
        fs::create_dir(dir.path().join(DRAFT)).expect("in the way");
        saver.save(&other());
        assert!(saver.is_behind());
        assert_eq!(Saved::decode(&fs::read(dir.path().join(FILE)).expect("there")), Ok(saved()));
        fs::remove_dir(dir.path().join(DRAFT)).expect("removed");
        saver.save(&other());
        assert!(!saver.is_behind());
    }
}
