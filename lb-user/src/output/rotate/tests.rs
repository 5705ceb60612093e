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

fn look(path: &Path, limits: Limits, ground: Ground, now: SystemTime) -> io::Result<Option<Looked>> {
    rotate(path, limits, ground, None, now, &GO)
}

/// Rotates until there is nothing to do.
fn settle(path: &Path, limits: Limits, ground: Ground, now: SystemTime) {
    while look(path, limits, ground, now).expect("rotated").is_some_and(|looked| looked.again) {}
}

/// All that is kept, in order.
fn all(path: &Path) -> String {
    let view = View::open(path).expect("readable").expect("there");
    String::from_utf8(view.tail(u64::MAX / 4, Place::MIN).expect("readable")).expect("what was written")
}

/// What the files hold. Of a file with a hole its blocks tell; others may have blocks ahead of their end (xfs).
fn room(dir: &Path, ground: Ground) -> u64 {
    let files = fs::read_dir(dir).expect("readable").flatten().map(|entry| entry.metadata().expect("there"));
    files.map(|file| if ground.way == Way::Punch { file.blocks() * 512 } else { file.len() }).sum()
}

#[test]
fn what_is_small_and_young_is_left_alone() {
    for (dir, ground) in grounds() {
        let path = file(dir.path());
        assert_eq!(look(&path, LIMITS, ground, SystemTime::now()).expect("no file, no trouble"), None);
        write(&path, &lines(LIMITS.size_max - 20));
        let looked = look(&path, LIMITS, ground, SystemTime::now()).expect("looked at");
        let end = fs::metadata(&path).expect("there").len().cast_signed();
        assert_eq!(looked, Some(Looked { end, again: false }));
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
        assert!(room(dir.path(), ground) <= LIMITS.size_max * 5);
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
                assert!(room(dir.path(), ground) <= LIMITS.size_max * u64::from(keep + 2), "{ground:?}, keep {keep}");
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
            look(&path, limits, ground, SystemTime::now()).expect("rotated");
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
fn while_a_worker_writes_faster_than_can_be_copied_its_file_alone_holds_what_is_kept() {
    for (dir, ground) in grounds() {
        let path = file(dir.path());
        let mut text = lines(LIMITS.size_max * 4);
        write(&path, &text);
        settle(&path, LIMITS, ground, SystemTime::now());
        assert!(name::old(&path, 3).exists());
        let mut seen = None;
        for _ in 0..10 {
            let more = lines(LIMITS.size_max * 3 / 2);
            write(&path, &more);
            text.push_str(&more);
            let looked = rotate(&path, LIMITS, ground, seen.or(Some(0)), SystemTime::now(), &GO).expect("looked at");
            let looked = looked.expect("there");
            assert!(looked.again, "it goes on being looked at");
            seen = Some(looked.end);
            assert!(!name::part(&path).exists() && text.ends_with(&all(&path)));
            assert!(
                room(dir.path(), ground) <= LIMITS.size_max * u64::from(LIMITS.keep + 2),
                "{}",
                room(dir.path(), ground)
            );
        }
        assert!(!name::old(&path, 1).exists());
        settle(&path, LIMITS, ground, SystemTime::now());
        assert!(text.ends_with(&all(&path)) && all(&path).len() as u64 >= LIMITS.size_max * 3);
        assert!(name::old(&path, 2).exists());
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
    let stopped = rotate(&path, LIMITS, ground, None, SystemTime::now(), &AtomicBool::new(true));
    assert_eq!(stopped.expect_err("homing ends").kind(), io::ErrorKind::Interrupted);
    assert_eq!((all(&path), name::part(&path).exists()), (text.clone(), false));
    settle(&path, LIMITS, ground, SystemTime::now());
    assert_eq!(all(&path), text);
}

#[test]
fn a_cut_that_a_killed_homing_left_undone_is_done_and_nothing_is_there_twice() {
    for (dir, ground) in grounds().into_iter().filter(|(_, ground)| ground.has_attributes) {
        let path = file(dir.path());
        let mut text = lines(LIMITS.size_max * 2);
        write(&path, &text);
        settle(&path, LIMITS, ground, SystemTime::now());
        write(&path, &text);
        text.push_str(&text.clone());
        // As far as a rotation comes before its cut.
        let live = Live::open(&path, OpenOptions::new().read(true)).expect("readable").expect("there");
        copy(&live, &name::part(&path), LIMITS.size_max, true, &GO).expect("copied");
        move_up(&path, &name::part(&path), LIMITS.keep).expect("moved");
        drop(live);
        assert_eq!(all(&path), text, "who reads in between sees nothing twice, {ground:?}");
        write(&path, "and on\n");
        text.push_str("and on\n");
        settle(&path, Limits { keep: 5, ..LIMITS }, ground, SystemTime::now());
        assert_eq!(all(&path), text, "{ground:?}");
    }
}

#[test]
fn a_gap_among_old_files_that_a_killed_homing_left_is_filled() {
    for (dir, ground) in grounds() {
        let path = file(dir.path());
        let limits = Limits { keep: 9, ..LIMITS };
        let text = lines(LIMITS.size_max * 3);
        write(&path, &text);
        settle(&path, limits, ground, SystemTime::now());
        let oldest = (1..).take_while(|&age| name::old(&path, age).exists()).last().expect("an old file");
        fs::rename(name::old(&path, oldest), name::old(&path, oldest + 1)).expect("moved up, and then it was killed");
        write(&path, &lines(LIMITS.size_max));
        settle(&path, limits, ground, SystemTime::now());
        assert!(all(&path).starts_with(&text), "{ground:?}");
    }
}

#[test]
fn wherever_homing_is_killed_during_a_cut_every_byte_is_there_once() {
    for (dir, ground) in grounds().into_iter().filter(|(_, ground)| ground.way == Way::Collapse) {
        let length = LIMITS.size_max;
        for steps in 0..=3 {
            let path = name::live(dir.path(), "sales", steps);
            let mut text = lines(length * 2);
            write(&path, &text);
            let mut live =
                Live::open(&path, OpenOptions::new().read(true).write(true)).expect("readable").expect("there");
            copy(&live, &name::part(&path), length, true, &GO).expect("copied");
            move_up(&path, &name::part(&path), LIMITS.keep).expect("moved");
            // As `cut` does it, step by step.
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if steps > 0 {
                rustix::fs::fallocate(&live.file, punch, 0, length).expect("punched");
            }
            if steps > 1 {
                Cut { bytes: length, at: 1, under_way: length }.write(&live.file).expect("written");
            }
            if steps > 2 {
                rustix::fs::fallocate(&live.file, FallocateFlags::COLLAPSE_RANGE, 0, length).expect("collapsed");
            }
            live.look().expect("readable");
            assert_eq!(all(&path), text, "killed after step {steps}");
            // Far more than was cut, so that the size tells nothing.
            write(&path, &text);
            text.push_str(&text.clone());
            assert_eq!(all(&path), text, "killed after step {steps}");
            settle(&path, Limits { keep: 9, ..LIMITS }, ground, SystemTime::now());
            assert_eq!(all(&path), text, "killed after step {steps}, then rotated");
            assert!(fs::metadata(&path).expect("there").len() <= length, "killed after step {steps}: no hole is left");
        }
    }
}

#[test]
fn a_pipe_or_a_link_in_its_place_is_an_error_and_not_waited_for() {
    let (dir, ground) = grounds().remove(0);
    let path = file(dir.path());
    std::os::unix::fs::symlink("/dev/zero", &path).expect("linked");
    look(&path, LIMITS, ground, SystemTime::now()).expect_err("a link");
    fs::remove_file(&path).expect("removed");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");
    look(&path, LIMITS, ground, SystemTime::now()).expect_err("a pipe");
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
