//! Scenarios of `process`.

use super::*;
use crate::worker::testing::{Worker, eventually};

#[tokio::test]
async fn the_exit_code_is_seen() {
    let worker = Worker::sh("exit 3");
    assert_eq!(worker.process.exited().await, Exit::Code(3));
    assert_eq!(worker.process.exited().await, Exit::Code(3), "and can be asked for again");
    assert_eq!(Exit::Code(3).to_string(), "exited with code 3");
}

#[tokio::test]
async fn a_kill_is_seen_with_its_signal() {
    let worker = Worker::sh("exec sleep 1000");
    worker.process.signal(Signal::KILL).expect("sent");
    let exit = worker.process.exited().await;
    assert_eq!(exit, Exit::Signal(9));
    assert_eq!(exit.to_string(), "killed by SIGKILL (by hand, or out of memory: see the kernel's log)");
}

#[tokio::test]
async fn killing_the_tree_leaves_no_child_behind() {
    let worker = Worker::sh("sleep 1000 & sleep 1000 & echo started; wait");
    worker.log_lines(1);
    let members = worker.process.members().expect("readable");
    assert_eq!(members.len(), 3, "{members:?}");
    assert_eq!(members[0], worker.process.pid());

    assert_eq!(worker.process.kill_tree(Signal::KILL).expect("killed"), 3);

    assert_eq!(worker.process.exited().await, Exit::Signal(9));
    eventually("the end of all", || members.iter().all(|pid| gone_or_dead(*pid)).then_some(()));
}

#[tokio::test]
async fn a_child_in_a_session_of_its_own_belongs_to_the_tree() {
    let worker = Worker::sh("setsid sh -c 'echo $$; exec sleep 1000' & wait");
    let child: u32 = worker.log_lines(1)[0].parse().expect("a process id");
    assert!(worker.process.members().expect("readable").contains(&child));
    worker.process.kill_tree(Signal::KILL).expect("killed");
    eventually("the end of the child", || gone_or_dead(child).then_some(()));
}

#[tokio::test]
async fn children_that_outlive_the_worker_are_still_found_and_killed() {
    let worker = Worker::sh("sleep 1000 & echo $!; exit 0");
    assert_eq!(worker.process.exited().await, Exit::Code(0));
    let child: u32 = worker.log_lines(1)[0].parse().expect("a process id");
    assert_eq!(worker.process.members().expect("readable"), [child]);
    assert_eq!(worker.process.kill_tree(Signal::KILL).expect("killed"), 1);
    eventually("the end of the child", || gone_or_dead(child).then_some(()));
}

#[tokio::test]
async fn a_gentle_signal_reaches_every_process_of_the_tree() {
    let worker = Worker::sh(
        "(trap 'echo child; exit' TERM; echo up; while :; do sleep 0.01; done) & \
         trap 'echo parent; exit 7' TERM; echo up; while :; do sleep 0.01; done",
    );
    worker.log_lines(2);
    worker.process.kill_tree(Signal::TERM).expect("sent");
    assert_eq!(worker.process.exited().await, Exit::Code(7));
    eventually("a word from both", || {
        let log = worker.log();
        (log.contains("child\n") && log.contains("parent\n")).then_some(())
    });
}

#[tokio::test]
async fn memory_is_that_of_all_processes() {
    let alone = Worker::sh("echo up; exec sleep 1000");
    let three = Worker::sh("sleep 1000 & sleep 1000 & echo up; wait");
    alone.log_lines(1);
    three.log_lines(1);
    let of_one = alone.process.memory_bytes();
    assert!(of_one > 100_000, "{of_one}");
    eventually("more memory for three", || (three.process.memory_bytes() > of_one).then_some(()));
}

#[tokio::test]
async fn a_running_worker_is_adopted_and_its_end_is_seen_though_not_its_status() {
    // The shell ends at once, so its child is init's and not ours: what a restarted homing finds.
    let parent = Worker::sh("setsid sleep 1000 & echo $!; exit 0");
    let pid: u32 = parent.log_lines(1)[0].parse().expect("a process id");
    assert_eq!(parent.process.exited().await, Exit::Code(0));
    let start_time = Stat::read(pid).expect("it runs").start_time;

    let adopted = Process::adopt(pid, start_time, Kin::default()).expect("asked").expect("it is the one meant");
    adopted.signal(Signal::KILL).expect("sent");
    assert_eq!(adopted.exited().await, Exit::Unknown);
    assert!(Process::adopt(pid, start_time, Kin::default()).expect("asked").is_none(), "it is gone now");
}

#[tokio::test]
async fn a_process_that_started_at_another_time_is_not_adopted() {
    let worker = Worker::sh("exec sleep 1000");
    let (pid, start_time) = (worker.process.pid(), worker.process.start_time());
    assert!(Process::adopt(pid, start_time + 1, Kin::default()).expect("asked").is_none());
    assert!(Process::adopt(pid, start_time, Kin::default()).expect("asked").is_some());
}

#[tokio::test]
async fn an_id_that_nobody_has_is_not_adopted() {
    // Beyond the largest process id that Linux gives (2^22).
    assert!(Process::adopt(5_000_000, 1, Kin::default()).expect("asked").is_none());
    assert!(Process::adopt(0, 1, Kin::default()).expect("asked").is_none());
    assert!(Process::adopt(u32::MAX, 1, Kin::default()).expect("asked").is_none());
}

#[tokio::test]
async fn no_zombie_is_left_when_an_ended_worker_is_let_go() {
    let worker = Worker::sh("exit 0");
    let pid = worker.process.pid();
    worker.process.exited().await;
    assert!(Stat::read(pid).is_ok_and(|stat| stat.dead), "held until it is let go");
    drop(worker);
    assert!(Stat::read(pid).is_err(), "process {pid} is a zombie");
}

fn gone_or_dead(pid: u32) -> bool {
    Stat::read(pid).map_or(true, |stat| stat.dead)
}
