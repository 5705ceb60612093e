//! Scenarios of `rotate`, with files that are written to meanwhile.

use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::output::stream::{Place, View};

const KIB: u64 = 1 << 10;
const DAY: Duration = Duration::from_secs(24 * 3600);
const LIMITS: Limits = Limits { size_max: 64 * KIB, age_max: DAY, keep: 3 };
static GO: AtomicBool = AtomicBool::new(false);

/// A directory on the file system of temporary files, and one in memory.
fn grounds() -> Vec<(tempfile::TempDir, Ground)> {
    let dirs = [tempfile::tempdir(), tempfile::tempdir_in("/dev/shm")];
    let mut grounds: Vec<_> = dirs.into_iter().map(|dir| dir.expect("a temporary directory")).collect();
    let mut all: Vec<_> = grounds.drain(..).map(|dir| (Ground::of(dir.path()).expect("tried"), dir)).collect();
    // Holes work wherever collapsing does.
    let (first, _) = all[0];
    all.push((Ground { way: Way::Punch, ..first }, tempfile::tempdir().expect("a temporary directory")));
    all.into_iter().map(|(ground, dir)| (dir, ground)).collect()
}

fn file(dir: &Path) -> PathBuf {
    name::live(dir, "sales", 0)
}

fn write(path: &Path, text: &str) {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.expect("opened").write_all(text.as_bytes()).expect("written");
}

/// Lines with their numbers, `bytes` of them together at least.
fn lines(bytes: u64) -> String {
    let mut text = String::new();
    (0..).map(|number: u32| format!("line {number}\n")).find(|line| {
        text.push_str(line);
        text.len() as u64 >= bytes
    });
    text
}

/// Rotates until there is nothing to do.
fn settle(path: &Path, limits: Limits, ground: Ground, now: SystemTime) {
    while rotate(path, limits, ground, now, &GO).expect("rotated") {}
}

/// All that is kept, in order.
fn all(path: &Path) -> String {
    let view = View::open(path).expect("readable").expect("there");
    String::from_utf8(view.tail(u64::MAX / 4, Place::MIN).expect("readable")).expect("what was written")
}

fn room(dir: &Path) -> u64 {
    fs::read_dir(dir).expect("readable").flatten().map(|entry| entry.metadata().expect("there").blocks() * 512).sum()
}

#[test]
fn what_is_small_and_young_is_left_alone() {
    for (dir, ground) in grounds() {
        let path = file(dir.path());
        assert!(!rotate(&path, LIMITS, ground, SystemTime::now(), &GO).expect("no file, no trouble"));
        write(&path, &lines(LIMITS.size_max - 20));
        assert!(!rotate(&path, LIMITS, ground, SystemTime::now(), &GO).expect("looked at"));
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1);
    }
}

#[test]
fn a_large_file_becomes_old_ones_that_together_hold_every_byte_in_order() {
    for (dir, ground) in grounds() {
        let path = file(dir.path());
        let text = lines(LIMITS.size_max * 3);
        write(&path, &text);
        settle(&path, LIMITS, ground, SystemTime::now());
        assert_eq!(all(&path), text, "{ground:?}");
        assert_eq!(fs::metadata(name::old(&path, 2)).expect("two old ones").len(), LIMITS.size_max);
        assert!(room(dir.path()) <= LIMITS.size_max * 5);
        if ground.way == Way::Collapse {
            assert!(fs::metadata(&path).expect("there").len() <= LIMITS.size_max);
        }
    }
}

#[test]
fn no_more_than_the_limits_is_kept_and_it_is_the_newest() {
    for keep in [0, 1, 3] {
        for (dir, ground) in grounds() {
            let path = file(dir.path());
            let limits = Limits { keep, ..LIMITS };
            let mut text = String::new();
            // Far too much at once, then a little at a time.
            for bytes in [LIMITS.size_max * 20, 30_000, 30_000, 30_000, 30_000, 30_000] {
                let more = lines(bytes);
                write(&path, &more);
                text.push_str(&more);
                settle(&path, limits, ground, SystemTime::now());
                let kept = all(&path);
                assert!(text.ends_with(&kept), "{ground:?}, keep {keep}");
                let least = LIMITS.size_max / 2 + u64::from(keep.saturating_sub(1)) * LIMITS.size_max;
                assert!(
                    (least..=LIMITS.size_max * u64::from(keep + 1)).contains(&(kept.len() as u64)),
                    "{}",
                    kept.len()
                );
                assert!(room(dir.path()) <= LIMITS.size_max * u64::from(keep + 2), "{ground:?}, keep {keep}");
            }
            let old = (1..10).take_while(|&age| name::old(&path, age).exists()).count();
            assert_eq!(old, keep as usize);
        }
    }
}

#[test]
fn a_worker_that_writes_all_the_while_loses_nothing_and_neither_does_who_reads_along() {
    for (dir, ground) in grounds() {
        let path = file(dir.path());
        let limits = Limits { keep: 1_000, ..LIMITS };
        // As a worker's standard output is: opened by homing, appended to by a process that knows nothing of it.
        let output = OpenOptions::new().append(true).create(true).open(&path).expect("opened");
        let script = "i=0; while [ $i -lt 150000 ]; do echo line $i; i=$((i+1)); done";
        let mut worker = Command::new("sh").args(["-c", script]).stdout(output).spawn().expect("sh runs");
        let mut followed = Vec::new();
        let mut buffer = vec![0; 10_000];
        loop {
            let ended = worker.try_wait().expect("a child").is_some();
            rotate(&path, limits, ground, SystemTime::now(), &GO).expect("rotated");
            if let Some(view) = View::open(&path).expect("readable") {
                let read = view.read(followed.len() as Place, &mut buffer).expect("readable");
                followed.extend_from_slice(&buffer[..read]);
                if ended && followed.len() as Place == view.end() {
                    break;
                }
            }
        }
        let expected: String = (0..150_000).map(|number| format!("line {number}\n")).collect();
        assert!(all(&path) == expected, "{ground:?}: what is kept is not what was written");
        assert!(String::from_utf8(followed).expect("lines") == expected, "{ground:?}: what was followed is not");
        assert!(name::old(&path, 10).exists(), "it was rotated all the while");
    }
}

#[test]
fn an_old_file_begins_anew_by_age_and_once_only() {
    for (dir, ground) in grounds() {
        let path = file(dir.path());
        let text = lines(20 * KIB);
        write(&path, &text);
        let later = SystemTime::now() + DAY;
        settle(&path, LIMITS, ground, later);
        assert_eq!(all(&path), text);
        let old = fs::metadata(name::old(&path, 1)).expect("an old file").len();
        assert!((text.len() as u64 - BLOCK_MAX.min(4 * KIB)..text.len() as u64).contains(&old), "{old} {ground:?}");
        write(&path, &text);
        settle(&path, LIMITS, ground, later + DAY / 2);
        assert!(!name::old(&path, 2).exists(), "half its time is left");
        if ground.has_attributes {
            settle(&path, LIMITS, ground, later + DAY);
            assert!(name::old(&path, 2).exists());
        }
    }
}

#[test]
fn where_a_head_cannot_be_taken_out_the_file_is_emptied_and_what_was_in_it_is_kept() {
    let (dir, ground) = grounds().remove(0);
    let ground = Ground { way: Way::Truncate, ..ground };
    let path = file(dir.path());
    let text = lines(LIMITS.size_max * 2);
    write(&path, &text);
    settle(&path, LIMITS, ground, SystemTime::now());
    assert_eq!(fs::metadata(&path).expect("there").len(), 0);
    assert_eq!(all(&path), text);
}

#[test]
fn what_was_half_copied_is_begun_anew_and_a_stop_leaves_the_file_whole() {
    let (dir, ground) = grounds().remove(0);
    let path = file(dir.path());
    let text = lines(LIMITS.size_max * 2);
    write(&path, &text);
    fs::write(name::part(&path), "half").expect("written");
    let stopped = rotate(&path, LIMITS, ground, SystemTime::now(), &AtomicBool::new(true));
    assert_eq!(stopped.expect_err("homing ends").kind(), io::ErrorKind::Interrupted);
    assert_eq!((all(&path), name::part(&path).exists()), (text.clone(), false));
    settle(&path, LIMITS, ground, SystemTime::now());
    assert_eq!(all(&path), text);
}

#[test]
fn a_pipe_or_a_link_in_its_place_is_an_error_and_not_waited_for() {
    let (dir, ground) = grounds().remove(0);
    let path = file(dir.path());
    std::os::unix::fs::symlink("/dev/zero", &path).expect("linked");
    rotate(&path, LIMITS, ground, SystemTime::now(), &GO).expect_err("a link");
    fs::remove_file(&path).expect("removed");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");
    rotate(&path, LIMITS, ground, SystemTime::now(), &GO).expect_err("a pipe");
}

#[test]
fn the_last_lines_are_found_over_old_files() {
    for (dir, ground) in grounds() {
        let path = file(dir.path());
        write(&path, &lines(LIMITS.size_max * 3));
        settle(&path, LIMITS, ground, SystemTime::now());
        let text = all(&path);
        let total = text.lines().count() as u64;
        let view = View::open(&path).expect("readable").expect("there");
        for count in [0, 1, 2, 10, total - 1, total, total + 5] {
            let from = view.last_lines(count).expect("readable");
            let found = text[(from - view.start()) as usize..].lines().count() as u64;
            assert_eq!(found, count.min(total), "{ground:?}");
        }
        drop(view);
        write(&path, "no end yet");
        let view = View::open(&path).expect("readable").expect("there");
        assert_eq!(view.last_lines(1).expect("readable"), view.end() - 10);
    }
}
