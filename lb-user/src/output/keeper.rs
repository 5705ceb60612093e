//! Keeps workers' files within their limits for as long as homing runs: woken by what is written, at work beside the
//! loop that serves, and quiet while nothing happens.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::Policy;
use super::name::{Kind, Name};
use super::rotate::{self, Ground, Way};
use super::stream::Place;
use crate::sys;
use crate::trouble::Trouble;

/// What a worker is expected to write at most. Files are looked at so often that it adds one limit's worth in between.
const BYTES_PER_SECOND: u64 = 2 << 30;
/// Bounds for the time between two looks while something is written.
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// Files that need more than one step are stayed with for so long, before others get their turn.
const TURN_MAX: Duration = Duration::from_millis(100);
/// Between looks at everything, for the sake of age: a part of the greatest age, within bounds.
const LOOKS_PER_AGE: u32 = 16;
const LOOK_MIN: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(600);
/// Between looks whether there is room, and, while something goes wrong, at everything.
const LOOK_ROOM: Duration = Duration::from_secs(10);
/// A disk with less room than this is called full.
const ROOM_MIN: u64 = 64 << 10;
/// Where the kernel does not say what is written.
const LOOK_UNTOLD: Duration = Duration::from_secs(1);
/// Names read at once.
const EVENT_BYTES: usize = 64 << 10;

/// The keeper. Dropping it ends its work.
pub struct Keeper {
    policies: watch::Sender<Policy>,
    task: AbortHandle,
    stop: Arc<AtomicBool>,
}

impl Keeper {
    /// Starts it. Needs a tokio runtime.
    pub fn start(policy: Policy) -> Self {
        let (policies, receiver) = watch::channel(policy);
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(keep(receiver, Arc::clone(&stop))).abort_handle();
        Self { policies, task, stop }
    }

    /// Other limits, or other workers. The directory stays as it is.
    pub fn set(&self, policy: Policy) {
        self.policies.send_replace(policy);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.abort();
    }
}

/// Which files to look at.
#[derive(Debug)]
enum Which {
    All,
    These(BTreeSet<PathBuf>),
    /// None, while all is well: only whether there is room.
    Room,
}

async fn keep(mut policies: watch::Receiver<Policy>, stop: Arc<AtomicBool>) {
    let dir = policies.borrow().dir.clone();
    let news = match News::of(&dir) {
        Ok(news) => Some(news),
        Err(error) => {
            tracing::warn!(%error, "no news of what workers write; their files are looked at every second");
            None
        }
    };
    let mut hand = Hand { stop, ..Hand::default() };
    let mut which = Which::All;
    let mut looked = tokio::time::Instant::now();
    let mut room_due = looked + LOOK_ROOM;
    loop {
        let policy = policies.borrow_and_update().clone();
        let limits = policy.limits;
        if matches!(which, Which::All) {
            looked = tokio::time::Instant::now();
        }
        let look =
            if news.is_some() { (limits.age_max / LOOKS_PER_AGE).clamp(LOOK_MIN, LOOK_MAX) } else { LOOK_UNTOLD };
        let turn = tokio::task::spawn_blocking(move || {
            let again = hand.turn(&policy, &which);
            (hand, again)
        });
        let Ok((returned, again)) = turn.await else { return };
        hand = returned;
        if !again.is_empty() {
            // One worker that writes as fast as it can does not hide the others.
            which = match news.as_ref().map(News::read) {
                _ if tokio::time::Instant::now() >= looked + look => Which::All,
                Some(Which::All) => Which::All,
                Some(Which::These(others)) => Which::These(&again | &others),
                Some(Which::Room) | None => Which::These(again),
            };
            continue;
        }
        which = tokio::select! {
            // Often enough for a file that is written to all the time, too.
            () = tokio::time::sleep_until(looked + look) => Which::All,
            () = tokio::time::sleep_until(room_due) => {
                room_due = tokio::time::Instant::now() + LOOK_ROOM;
                Which::Room
            }
            changed = policies.changed() => match changed {
                Ok(()) => Which::All,
                Err(_) => return,
            },
            written = written(news.as_ref(), limits.size_max) => written,
        };
    }
}

/// What was written to, some time after the first of it was.
async fn written(news: Option<&News>, size_max: u64) -> Which {
    let Some(news) = news else { return std::future::pending().await };
    news.wait().await;
    tokio::time::sleep(pause(size_max)).await;
    news.read()
}

fn pause(size_max: u64) -> Duration {
    Duration::from_millis(size_max.saturating_mul(1_000) / BYTES_PER_SECOND).clamp(PAUSE_MIN, PAUSE_MAX)
}

/// What the kernel says of the directory.
struct News {
    dir: PathBuf,
    inotify: AsyncFd<OwnedFd>,
}

impl News {
    fn of(dir: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&inotify, dir, WatchFlags::MODIFY)?;
        Ok(Self { dir: dir.to_owned(), inotify: sys::watch_readable(inotify)? })
    }

    async fn wait(&self) {
        // An error would come from a runtime that is ending.
        if self.inotify.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// All that was written to since the last time.
    fn read(&self) -> Which {
        let mut buffer = vec![MaybeUninit::uninit(); EVENT_BYTES];
        let mut names = BTreeSet::new();
        // In one: what comes after the last read is news again.
        let is_lost = self.inotify.try_io(Interest::READABLE, |inotify| {
            let mut reader = inotify::Reader::new(inotify, &mut buffer);
            loop {
                let event = reader.next()?;
                if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                    return Ok(());
                }
                let name = event.file_name().and_then(|name| name.to_str().ok());
                if let Some(name) = name.filter(|name| Name::parse(name).is_some_and(|name| name.kind == Kind::Live)) {
                    names.insert(self.dir.join(name));
                }
            }
        });
        if is_lost.is_ok() {
            return Which::All;
        }
        Which::These(names)
    }
}

/// Does the work, one turn at a time.
#[derive(Default)]
struct Hand {
    /// Found out at the first turn that can.
    ground: Option<Ground>,
    /// Where each file ended at the last look.
    seen: HashMap<PathBuf, Place>,
    /// All files were looked at once: others are new, and what they hold is.
    has_looked: bool,
    /// Files cannot be rotated.
    trouble: Trouble,
    has_trouble: bool,
    /// There is no room.
    is_full: Trouble,
    stop: Arc<AtomicBool>,
}

impl Hand {
    /// A step for every file, and a few more for some; returns those that need another.
    fn turn(&mut self, policy: &Policy, which: &Which) -> BTreeSet<PathBuf> {
        let result = match which {
            Which::These(paths) => self.rotate_on(policy, paths),
            Which::Room if !self.has_trouble => {
                self.look_for_room(&policy.dir);
                return BTreeSet::new();
            }
            Which::All | Which::Room => {
                self.look_for_room(&policy.dir);
                self.look_at_all(policy)
            }
        };
        self.has_trouble = result.is_err();
        match result {
            Ok(again) => {
                if self.trouble.is_over() {
                    tracing::info!("workers' output is rotated again");
                }
                again
            }
            Err(_) if self.stop.load(Ordering::Relaxed) => BTreeSet::new(),
            Err(error) => {
                if self.trouble.is_news(Instant::now()) {
                    let remedy = match error.kind() {
                        io::ErrorKind::PermissionDenied => "Correct the owner of the files in homing.log_dir",
                        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "Make room in homing.log_dir",
                        _ => "Look after homing.log_dir",
                    };
                    tracing::warn!(
                        %error, dir = %policy.dir.display(),
                        "workers' output cannot be rotated; serving goes on. {remedy}: it is tried again"
                    );
                }
                BTreeSet::new()
            }
        }
    }

    /// Workers' own writes fail while there is none, and they tell nobody.
    fn look_for_room(&mut self, dir: &Path) {
        let Ok(stat) = rustix::fs::statvfs(dir) else { return };
        if stat.f_bavail.saturating_mul(stat.f_frsize) < ROOM_MIN {
            if self.is_full.is_news(Instant::now()) {
                tracing::warn!(
                    dir = %dir.display(),
                    "the disk is full: what workers write is lost, serving goes on. Make room in homing.log_dir"
                );
            }
        } else if self.is_full.is_over() {
            tracing::info!(dir = %dir.display(), "there is room for workers' output again");
        }
    }

    fn look_at_all(&mut self, policy: &Policy) -> io::Result<BTreeSet<PathBuf>> {
        let mut live = BTreeSet::new();
        for entry in fs::read_dir(&policy.dir)? {
            let entry = entry?;
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str().and_then(Name::parse) else { continue };
            if is_over(policy, &name, &entry) {
                rotate::remove(&entry.path())?;
            } else if name.kind == Kind::Live {
                live.insert(entry.path());
            }
        }
        self.seen.retain(|path, _| live.contains(path));
        // Before it is in haste.
        self.ground(&policy.dir)?;
        let again = self.rotate(policy, &live);
        self.has_looked = true;
        again
    }

    /// Stays with those that need another step for a while: on a busy machine every change of threads costs time, in
    /// which a worker goes on writing.
    fn rotate_on(&mut self, policy: &Policy, paths: &BTreeSet<PathBuf>) -> io::Result<BTreeSet<PathBuf>> {
        let end = Instant::now() + TURN_MAX;
        let mut again = self.rotate(policy, paths)?;
        while !again.is_empty() {
            std::thread::sleep(pause(policy.limits.size_max));
            if Instant::now() >= end || self.stop.load(Ordering::Relaxed) {
                break;
            }
            again = self.rotate(policy, &again)?;
        }
        Ok(again)
    }

    fn rotate(&mut self, policy: &Policy, paths: &BTreeSet<PathBuf>) -> io::Result<BTreeSet<PathBuf>> {
        let mut again = BTreeSet::new();
        let mut failed = None;
        let now = SystemTime::now();
        for path in paths {
            let ground = self.ground(&policy.dir)?;
            // One file's trouble is not the others'.
            let seen = self.seen.get(path).copied().or(self.has_looked.then_some(0));
            match rotate::rotate(path, policy.limits, ground, seen, now, &self.stop) {
                Ok(Some(looked)) => {
                    self.seen.insert(path.clone(), looked.end);
                    if looked.again {
                        again.insert(path.clone());
                    }
                }
                Ok(None) => {}
                Err(error) => failed = Some(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
            }
        }
        failed.map_or(Ok(again), Err)
    }

    fn ground(&mut self, dir: &Path) -> io::Result<Ground> {
        if let Some(ground) = self.ground {
            return Ok(ground);
        }
        let ground = Ground::of(dir)?;
        match ground.way {
            Way::Collapse | Way::Punch => tracing::debug!(dir = %dir.display(), ?ground, "how output is rotated"),
            Way::Truncate => tracing::warn!(
                dir = %dir.display(),
                "this file system cannot take the head out of a file: when output is rotated, what is written at that \
                 moment may be lost. Use ext4, xfs, btrfs or tmpfs for homing.log_dir"
            ),
        }
        self.ground = Some(ground);
        Ok(ground)
    }
}

/// Whether the file has no more place among those that are kept.
fn is_over(policy: &Policy, name: &Name<'_>, entry: &fs::DirEntry) -> bool {
    let is_stale = || {
        let written = entry.metadata().and_then(|metadata| metadata.modified());
        let idle = written.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        idle.is_some_and(|idle| idle > policy.limits.retention())
    };
    match name.kind {
        Kind::Part => true,
        Kind::Old(age) => age > policy.limits.keep || is_stale(),
        Kind::Live => !policy.knows(name) && is_stale(),
    }
}

#[cfg(test)]
mod tests;
