//! Process 1 of a virtual machine that `cargo xtask vm` boots: it mounts what tests need, runs them one after another,
//! says on the console what became of each, and turns the machine off. The host judges.

mod plan;

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::system::RebootCommand;

use plan::{PLAN, Plan, Test};

/// Where a test's words go until it has ended.
const SAID: &str = "/tmp/said";
/// What `homing_tests::skips` tells, and the variable that names it.
const SKIPS: &str = "/tmp/skips";
const SKIPS_VARIABLE: &str = "HOMING_SKIPS";
/// The last lines of a failed test that the console gets.
const SAID_LINES_MAX: usize = 60;
/// How often a running test is looked at.
const PATIENCE: Duration = Duration::from_millis(20);

fn main() {
    if std::process::id() != 1 {
        eprintln!("vm-init is process 1 of a virtual machine; start it with: cargo xtask vm");
        std::process::exit(1);
    }
    if let Err(error) = prepare().and_then(|()| run_all()) {
        println!("@@ BROKEN {error:#}");
    }
    println!("@@ END");
    rustix::fs::sync();
    let error = rustix::system::reboot(RebootCommand::PowerOff);
    // Process 1 that ends is a panic of the kernel, which ends the machine too.
    println!("@@ BROKEN the machine cannot be turned off: {error:?}");
}

/// What a system has before anybody logs in.
fn prepare() -> anyhow::Result<()> {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
    ] {
        let _ = fs::create_dir_all(at);
        mount(kind, at, kind, MountFlags::empty(), None).with_context(|| format!("{at} cannot be mounted"))?;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("@@ KERNEL {}", release.trim());
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("ip cannot be run")?;
    if !up.success() {
        bail!("the loopback interface does not come up: {up}");
    }
    for module in plan::read(plan::MODULES)?.lines() {
        let loaded = Command::new("modprobe").arg(module).output().context("modprobe cannot be run")?;
        if !loaded.status.success() {
            println!("@@ LACKS {module}: {}", String::from_utf8_lossy(&loaded.stderr).trim());
        }
    }
    Ok(())
}

fn run_all() -> anyhow::Result<()> {
    let (limit, tests) = match Plan::parse(&plan::read(PLAN)?)? {
        Plan::Tests { limit, tests } => (limit, tests),
        Plan::Program(words) => return run_program(&words),
    };
    for test in &tests {
        let start = Instant::now();
        let outcome = run(test, limit);
        let took = start.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                let told = fs::read_to_string(SKIPS).unwrap_or_default();
                match skipped(&told) {
                    Skipped::Whole(why) => println!("@@ SKIP {test}: {why}"),
                    Skipped::Parts(parts) => {
                        parts.iter().for_each(|why| println!("@@ PART {test}: {why}"));
                        println!("@@ PASS {test} ({took:.1} s)");
                    }
                }
            }
            Err(error) => {
                let said = fs::read(SAID).unwrap_or_default();
                let said = String::from_utf8_lossy(&said);
                let lines: Vec<&str> = said.lines().collect();
                for line in &lines[lines.len().saturating_sub(SAID_LINES_MAX)..] {
                    println!("   | {line}");
                }
                println!("@@ FAIL {test}: {error:#} ({took:.1} s)");
            }
        }
    }
    Ok(())
}

/// Runs a program to its end, however long that takes; the console gets what it says.
fn run_program(words: &[String]) -> anyhow::Result<()> {
    let (program, arguments) = words.split_first().context("a program is named")?;
    let mut child = Command::new(program).args(arguments).stdin(Stdio::null()).spawn().context(program.clone())?;
    let status = child.wait()?;
    if !status.success() {
        bail!("{program}: {status}");
    }
    Ok(())
}

/// Runs one test in a process group of its own, to its end or to the limit.
fn run(test: &Test, limit: Duration) -> anyhow::Result<()> {
    let said = File::create(SAID)?;
    File::create(SKIPS)?;
    let mut child = Command::new(Path::new(plan::TESTS).join(&test.suite))
        .args(["--exact", &test.name, "--nocapture"])
        .env(SKIPS_VARIABLE, SKIPS)
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said)
        .process_group(0)
        .spawn()
        .context("it cannot be run")?;
    let ended = wait(&mut child, limit);
    // What it left running must not disturb the next.
    let group = Pid::from_child(&child);
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
    let Some(status) = ended? else {
        child.wait()?;
        bail!("not done after {} s", limit.as_secs());
    };
    if !status.success() {
        bail!("{}", why(&fs::read(SAID).unwrap_or_default()).unwrap_or_else(|| status.to_string()));
    }
    Ok(())
}

/// The end of the child, or `None` when time is up. Orphans are process 1's to bury.
fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            bury_orphans();
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            return Ok(None);
        }
        std::thread::sleep(PATIENCE);
    }
}

fn bury_orphans() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// What a test that passed left out.
#[derive(Debug, PartialEq)]
enum Skipped<'a> {
    /// Nothing of it was done.
    Whole(&'a str),
    Parts(Vec<&'a str>),
}

/// `told`: how much of it and why, in a line each.
fn skipped(told: &str) -> Skipped<'_> {
    let mut parts = Vec::new();
    for (how_much, why) in told.lines().filter_map(|line| line.split_once('\t')) {
        // The test's name is said anyway.
        let why = why.split_once(": ").map_or(why, |(_, why)| why);
        if how_much == "all" {
            return Skipped::Whole(why);
        }
        parts.push(why);
    }
    Skipped::Parts(parts)
}

/// What the first panic said.
fn why(said: &[u8]) -> Option<String> {
    let said = String::from_utf8_lossy(said);
    let mut lines = said.lines().skip_while(|line| !line.contains("panicked at "));
    let place = lines.next()?;
    Some(format!("{} {}", place.trim_end_matches(':'), lines.next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::Skipped;

    #[test]
    fn a_test_that_did_nothing_is_told_from_one_that_left_something_out() {
        assert_eq!(super::skipped(""), Skipped::Parts(Vec::new()));
        assert_eq!(super::skipped("part\ta::b: no IPv6: none\n"), Skipped::Parts(vec!["no IPv6: none"]));
        assert_eq!(super::skipped("part\ta: x\nall\ta: no GUE here\n"), Skipped::Whole("no GUE here"));
    }

    #[test]
    fn the_first_panic_is_why_a_test_failed() {
        let said =
            "running 1 test\nthread 'x' panicked at a.rs:1:2:\nnot so\nnote: more\nthread 'y' panicked at b.rs:3:4:\n";
        assert_eq!(super::why(said.as_bytes()).as_deref(), Some("thread 'x' panicked at a.rs:1:2 not so"));
        assert_eq!(super::why(b"running 1 test\n"), None);
    }
}
