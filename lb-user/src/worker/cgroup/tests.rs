//! Scenarios of `cgroup`: on directories that look like cgroup v2, and on this machine's own where it lets us.

use std::collections::BTreeSet;

use super::*;
use crate::worker::procfs::Stat;
use crate::worker::testing::{Worker, eventually, spec};
use crate::worker::{Exit, Process, Signal, spawn};

/// A directory that looks like a group of cgroup v2 with these controllers.
fn v2(directory: &Path, controllers: &str, procs: &str) {
    fs::create_dir_all(directory).expect("made");
    let files = [
        ("cgroup.controllers", controllers),
        ("cgroup.subtree_control", ""),
        ("cgroup.procs", procs),
        ("cgroup.type", "domain"),
    ];
    for (file, text) in files {
        fs::write(directory.join(file), text).expect("written");
    }
}

fn place(mount: &Path, directory: &Path) -> Place {
    Place { version: Version::V2, controllers: Vec::new(), mount: mount.to_owned(), directory: directory.to_owned() }
}

/// The kernel would have made its files in the parent; here the parent is made before.
fn below(mount: &Path, directory: &Path, parent: &Path, guarded: bool) -> Cgroups {
    v2(parent, "", "");
    Cgroups::below(&[place(mount, directory)], "homing-1", guarded)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("readable")
}

fn why(way: &Way) -> &str {
    match way {
        Way::None { why } => why,
        Way::Group(version) => panic!("by {version:?}"),
    }
}

#[test]
fn in_a_delegated_subgroup_the_workers_go_beside_homing_with_both_controllers() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let unit = folder.path().join("homing.service");
    v2(&unit, "cpu memory pids", "");
    let own = unit.join("homing");
    v2(&own, "", &std::process::id().to_string());
    let cgroups = below(folder.path(), &own, &unit.join("homing-1"), true);
    for way in [&cgroups.tree_way, &cgroups.memory_way, &cgroups.cpu_way] {
        assert_eq!(*way, Way::Group(Version::V2));
    }
    // A plain file keeps the last word alone.
    assert_eq!(text(&unit.join("cgroup.subtree_control")), "+cpuory");
    assert_eq!(cgroups.parents, [unit.join("homing-1"), unit.join("homing-1"), unit.join("homing-1")]);
}

#[test]
fn where_systemd_did_not_delegate_homing_stays_where_it_is_and_says_what_to_add() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let unit = folder.path().join("homing.service");
    v2(&unit, "cpu memory", &std::process::id().to_string());
    let cgroups = below(folder.path(), &unit, &unit.join("homing-1"), true);
    assert_eq!(cgroups.tree_way, Way::Group(Version::V2));
    assert!(why(&cgroups.memory_way).contains("DelegateSubgroup=homing"), "{}", why(&cgroups.memory_way));
    assert_eq!(text(&unit.join("cgroup.subtree_control")), "");
}

#[test]
fn alone_in_its_group_homing_moves_aside() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (unit, own) = (folder.path().join("box"), folder.path().join("box/homing"));
    v2(&unit, "memory", &format!("{}\n", std::process::id()));
    v2(&own, "", "");
    let cgroups = below(folder.path(), &unit, &unit.join("homing-1"), false);
    assert_eq!(text(&own.join("cgroup.procs")), "0");
    assert_eq!(cgroups.memory_way, Way::Group(Version::V2));
    assert!(why(&cgroups.cpu_way).contains("no cpu controller"));
}

#[test]
fn in_a_group_with_others_nobody_is_moved() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let unit = folder.path().join("session.scope");
    v2(&unit, "memory", &format!("{}\n1\n", std::process::id()));
    let cgroups = below(folder.path(), &unit, &unit.join("homing-1"), false);
    assert!(why(&cgroups.memory_way).contains("with other processes"), "{}", why(&cgroups.memory_way));
}

#[test]
fn a_machine_without_cgroups_and_one_where_they_are_unwanted_give_the_reason() {
    let cgroups = Cgroups::below(&[], "homing-1", false);
    assert_eq!(why(&cgroups.tree_way), "this machine has no cgroups mounted");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let cgroups = Cgroups::open(folder.path(), false);
    assert_eq!(why(&cgroups.memory_way), "homing.cgroups = \"off\" in the configuration");
    assert!(cgroups.make("a.0.1", true, true).expect("nothing to make").is_none());
}

#[test]
fn bounds_are_written_as_each_version_wants_them() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let own = folder.path().join("sales.0.1");
    fs::create_dir(&own).expect("made");
    let group =
        |version| Group { tree: own.clone(), memory: Some((version, own.clone())), cpu: Some((version, own.clone())) };
    let files = [
        "memory.max",
        "memory.swap.max",
        "cpu.weight",
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "cpu.shares",
    ];
    for file in files {
        fs::write(own.join(file), "").expect("written");
    }
    fs::write(folder.path().join("cpu.shares"), "1024").expect("written");
    let neighbour = folder.path().join("sales.1.2");
    fs::create_dir(&neighbour).expect("made");
    fs::write(neighbour.join("cpu.shares"), "1000\n").expect("written");
    for version in [Version::V1, Version::V2] {
        group(version).limit_memory(Some(1 << 30)).expect("written");
        group(version).weigh_cpu(200).expect("written");
    }
    let written = files.map(|file| text(&own.join(file)));
    assert_eq!(written, ["1073741824", "0", "200", "1073741824", "1073741824", "2048"]);
    assert_eq!(text(&folder.path().join("cpu.shares")), "3048", "the parent has the shares of both");
    fs::write(own.join("memory.events"), "low 0\nhigh 0\nmax 9\noom 2\noom_kill 3\noom_group_kill 0\n")
        .expect("written");
    assert_eq!(group(Version::V2).kills(), Some(Kills { count: 3, own_limit: true }));
    fs::write(own.join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n").expect("written");
    fs::write(own.join("memory.max_usage_in_bytes"), "4096\n").expect("written");
    assert_eq!(group(Version::V1).kills(), Some(Kills { count: 1, own_limit: false }));
    fs::write(own.join("memory.max_usage_in_bytes"), "1072693248\n").expect("written");
    assert_eq!(group(Version::V1).kills(), Some(Kills { count: 1, own_limit: true }));
}

#[test]
fn names_of_two_state_directories_differ_and_that_of_one_stays() {
    let (one, other) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let name = |folder: &tempfile::TempDir| name_of(folder.path()).expect("named");
    assert_eq!(name(&one), name(&one));
    assert_ne!(name(&one), name(&other));
}

/// This machine's groups for a homing of the test's own; nothing where it lets us make none.
fn real(folder: &Path) -> Option<Cgroups> {
    let cgroups = Cgroups::open(folder, true);
    if cgroups.tree_way.is_none() {
        eprintln!("SKIPPED: {}", why(&cgroups.tree_way));
        return None;
    }
    Some(cgroups)
}

/// A shell that starts a daemon of the kind that nobody can find: forked twice, in a session of its own, with a clean
/// environment. Prints the daemon's process id.
const DAEMON: &str = "(env -i setsid sh -c 'echo $$; exec sleep 1000' &) ; ";

#[tokio::test]
async fn a_daemon_with_a_clean_environment_ends_with_its_worker() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let Some(mut cgroups) = real(folder.path()) else { return };
    let group = cgroups.make("sales.0.1", false, false).expect("made").expect("there are groups");
    let tree = group.tree.clone();
    let worker = Worker::sh_in(&format!("{DAEMON} exec sleep 1000"), Some(group));
    let daemon: u32 = worker.log_lines(1)[0].parse().expect("a process id");
    let members = worker.process.members().expect("readable");
    assert_eq!(members.iter().copied().collect::<BTreeSet<u32>>(), BTreeSet::from([worker.process.pid(), daemon]));

    let found = cgroups.of(daemon).expect("the group of a stranger's process is known by its path");
    assert_eq!(found.tree, tree);
    assert!(cgroups.leftovers(&[&found]).is_empty());
    std::mem::forget(found);

    worker.process.signal(Signal::KILL).expect("sent");
    assert_eq!(worker.process.exited().await, Exit::Signal(9));
    assert_eq!(worker.process.kill_tree(Signal::KILL).expect("killed"), 1, "the daemon was left");
    eventually("the end of the group", || worker.process.is_cleared().then_some(()));
    assert!(!tree.exists(), "{tree:?} is left");
    eventually("the end of the daemon", || Stat::read(daemon).map_or(true, |stat| stat.dead).then_some(()));
    drop(worker);
    cgroups.close();
    assert!(cgroups.parents.is_empty(), "{:?}", cgroups.parents);
    assert!(!folder.path().join(RECORD).exists());
}

#[tokio::test]
async fn what_an_earlier_run_left_is_found_from_its_record_alone() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let Some(before) = real(folder.path()) else { return };
    let group = before.make("sales.0.2", false, false).expect("made").expect("there are groups");
    let worker = Worker::sh_in("echo up; exec sleep 1000", Some(group));
    worker.log_lines(1);
    // As if homing were started in another place now, where it finds nothing of its own.
    let mut after = Cgroups::nothing("elsewhere");
    after.parents = recorded(&folder.path().join(RECORD));
    let leftovers = after.leftovers(&[]);
    assert_eq!(leftovers.len(), 1);
    assert_eq!(leftovers[0].members(), [worker.process.pid()]);
    assert_eq!(leftovers[0].kill().expect("killed"), 1);
    assert_eq!(worker.process.exited().await, Exit::Signal(9));
    drop((worker, leftovers));
    after.close();
    assert!(after.parents.is_empty(), "{:?}", after.parents);
}

/// A worker that forks all the time, each child in a session of its own and with a clean environment.
async fn forks_are_all_ended(cgroups: &Cgroups, kill: impl Fn(&Process) -> io::Result<usize>) {
    let group = cgroups.make("sales.0.3", false, false).expect("made").expect("there are groups");
    let tree = group.tree.clone();
    let worker = Worker::sh_in("while :; do env -i setsid sleep 1000 & echo $!; sleep 0.01; done", Some(group));
    worker.log_lines(20);
    assert!(kill(&worker.process).expect("killed") >= 20);
    assert_eq!(worker.process.exited().await, Exit::Signal(9));
    eventually("the end of all", || worker.process.is_cleared().then_some(()));
    assert!(!tree.exists());
    for line in worker.log().lines() {
        let pid = line.parse().expect("a process id");
        assert!(Stat::read(pid).map_or(true, |stat| stat.dead), "{pid} is left");
    }
}

#[tokio::test]
async fn a_worker_that_forks_all_the_time_is_ended_with_all_it_forked() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let Some(mut cgroups) = real(folder.path()) else { return };
    forks_are_all_ended(&cgroups, |process| process.kill_tree(Signal::KILL)).await;
    // As Linux before 5.14 has to.
    let one_by_one = |process: &Process| process.kin().group.as_ref().expect("it has one").kill_one_by_one();
    forks_are_all_ended(&cgroups, one_by_one).await;
    cgroups.close();
    assert!(cgroups.parents.is_empty(), "{:?}", cgroups.parents);
}

#[tokio::test]
async fn where_there_is_only_v1_it_is_ended_too() {
    let places = hierarchy::places("self").expect("readable");
    let v1: Vec<Place> = places.into_iter().filter(|place| place.version == Version::V1).collect();
    let name = format!("homing-test-{}", std::process::id());
    let mut cgroups = Cgroups::below(&v1, &name, false);
    if cgroups.tree_way.is_none() {
        eprintln!("SKIPPED: {}", why(&cgroups.tree_way));
        return;
    }
    forks_are_all_ended(&cgroups, |process| process.kill_tree(Signal::KILL)).await;
    cgroups.record = std::env::temp_dir().join(&name);
    cgroups.close();
    assert!(cgroups.parents.is_empty(), "{:?}", cgroups.parents);
}

#[tokio::test]
async fn a_hundred_short_lives_leave_no_group_behind() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let Some(mut cgroups) = real(folder.path()) else { return };
    for number in 0..100 {
        let group = cgroups.make(&format!("sales.0.{number}"), true, true).expect("made");
        let spawned = spawn(&spec(folder.path(), &["true"]), group).expect("it starts");
        let process = Process::new(spawned).expect("it is watched");
        process.exited().await;
        process.kill_tree(Signal::KILL).expect("nobody is left");
        eventually("the end of its groups", || process.is_cleared().then_some(()));
    }
    cgroups.close();
    assert!(cgroups.parents.is_empty(), "{:?}", cgroups.parents);
}
