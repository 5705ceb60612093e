//! Scenarios of `keeper`, on real files.

use std::collections::BTreeMap;
use std::io::Write as _;

use super::*;
use crate::output::{Limits, name};

const LIMITS: Limits = Limits { size_max: 64 << 10, age_max: Duration::from_secs(60), keep: 2 };
const PATIENCE: Duration = Duration::from_secs(30);

fn policy(dir: &Path) -> Policy {
    Policy { dir: dir.to_owned(), limits: LIMITS, apps: BTreeMap::from([("sales".to_owned(), 2)]) }
}

/// Makes a file that was last written to so long ago.
fn file(dir: &Path, name: &str, age: Duration) {
    let file = fs::File::create(dir.join(name)).expect("made");
    file.set_modified(SystemTime::now() - age).expect("a file's time can be set");
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("readable").flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

async fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn files_of_workers_that_are_no_more_go_by_age_and_what_is_not_homings_stays() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (old, young) = (LIMITS.age_max * 4, LIMITS.age_max * 2);
    for (name, age) in [
        ("sales-0.log", old),
        ("sales-0.log.1", young),
        ("sales-0.log.2", old),
        ("sales-0.log.3", young),
        ("sales-1.log.part", young),
        ("sales-2.log", old),
        ("sales-2.log.1", old),
        ("sales-3.log", young),
        ("gone-0.log", old),
        ("other.log", old),
        ("sales-0.log.gz", old),
    ] {
        file(dir.path(), name, age);
    }
    let mut hand = Hand::default();
    assert!(hand.turn(&policy(dir.path()), &Which::All).is_empty());
    assert_eq!(
        names(dir.path()),
        ["other.log", "sales-0.log", "sales-0.log.1", "sales-0.log.gz", "sales-3.log"],
        "kept: of known workers the live ones, of all the young ones within `keep`"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_grows_is_made_shorter_without_anybody_asking() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let keeper = Keeper::start(policy(dir.path()));
    let path = name::live(dir.path(), "sales", 0);
    let mut file = fs::OpenOptions::new().append(true).create(true).open(&path).expect("made");
    for age in 1..=2 {
        file.write_all(&[b'x'; 100_000]).expect("written");
        wait_for("an old file", || name::old(&path, age).exists()).await;
    }
    // New limits are obeyed without a byte being written.
    keeper.set(Policy { limits: Limits { keep: 1, ..LIMITS }, ..policy(dir.path()) });
    wait_for("the new limits", || !name::old(&path, 2).exists()).await;
}

#[tokio::test]
async fn news_name_the_files_that_were_written_to() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let news = News::of(dir.path()).expect("inotify");
    for name in ["sales-0.log", "sales-1.log", "other.txt"] {
        fs::write(dir.path().join(name), "x").expect("written");
    }
    news.wait().await;
    let Which::These(paths) = news.read() else { panic!("three files are no flood") };
    assert_eq!(paths, ["sales-0.log", "sales-1.log"].map(|name| dir.path().join(name)).into());
    fs::write(dir.path().join("sales-1.log"), "again").expect("written");
    news.wait().await;
    let Which::These(paths) = news.read() else { panic!("one file is no flood") };
    assert_eq!(paths, [dir.path().join("sales-1.log")].into());
}

#[test]
fn looks_come_often_enough_for_the_limit() {
    assert_eq!(pause(64 << 20), Duration::from_millis(31));
    assert_eq!((pause(64 << 10), pause(64 << 30)), (PAUSE_MIN, PAUSE_MAX));
}
