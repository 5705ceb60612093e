//! One boot: QEMU without hardware help, the console read line by line, what became of each test, and an end in any case.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::kernels::Kernel;

/// Tests take little memory; the archive with all programs is held twice for a moment.
const MEMORY_MIB: &str = "2048";

/// A panic ends the guest. What the kernel does not know becomes process 1's environment.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet loglevel=4 panic=-1 PATH=/bin:/sbin HOMING_BIN=/bin/homing HOMING_GUEST=1 RUST_BACKTRACE=0";

/// What kind of machine is made up.
pub enum Machine {
    /// As quick as it can be and be relied on. Its two CPUs take turns in one thread: with a thread for each, three boots in a
    /// hundred of Linux 7.2 ended in `Oops: int3`, since a CPU of QEMU 7.2's went on with code that it had translated before
    /// the kernel changed it (a static key). A boot takes no longer for it.
    Quick,
    /// Every nanosecond of its clock is one instruction of its one CPU, and nothing in it is left to chance.
    Counting,
}

impl Machine {
    fn options(&self) -> &'static [&'static str] {
        match self {
            Self::Quick => &["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2"],
            Self::Counting => &[
                "-accel",
                "tcg,thread=single",
                "-smp",
                "1",
                "-cpu",
                "max,-rdrand,-rdseed",
                "-icount",
                "shift=0,sleep=off",
                "-rtc",
                "base=2024-01-01T00:00:00,clock=vm",
                // What QEMU gives the kernel to begin its random numbers with.
                "-seed",
                "1",
            ],
        }
    }

    fn command_line(&self) -> String {
        let more = match self {
            Self::Quick => "",
            Self::Counting => " nokaslr norandmaps random.trust_cpu=off random.trust_bootloader=off",
        };
        format!("{COMMAND_LINE}{more}")
    }
}

/// What became of a test.
#[derive(Debug, PartialEq)]
pub enum Became {
    Passed,
    /// Why nothing of it can be done there.
    Skipped(String),
    /// Why.
    Failed(String),
}

/// What the guest said of each test.
#[derive(Default)]
pub struct Said {
    pub outcomes: BTreeMap<String, Became>,
    /// Parts of tests that cannot be done there: the test, and why.
    pub left_out: Vec<String>,
    /// What it measured, in its order.
    pub costs: Vec<(String, f64)>,
    /// Why the guest said no more, where it did not come to its end.
    pub broken: Option<String>,
    /// It came to its end.
    is_done: bool,
}

/// Where a guest's words go: all of them into a file, what it says of tests to the terminal behind its label. A guest that
/// breaks off has the end of its console shown, where its kernel may have said why.
pub struct Console<'a> {
    pub label: &'a str,
    pub log: &'a Path,
}

/// How much of it: a kernel's report of an oops with its call trace.
const CONSOLE_END_LINES: usize = 60;

/// Boots the kernel on the archive and listens until the guest has ended, for so long at most.
pub fn boot(
    kernel: &Kernel,
    initrd: &Path,
    console: &Console<'_>,
    machine: &Machine,
    limit: Duration,
) -> anyhow::Result<Said> {
    let mut qemu = Running(
        Command::new("qemu-system-x86_64")
            .args(["-machine", "q35", "-m", MEMORY_MIB])
            .args(machine.options())
            .args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"])
            .arg("-append")
            .arg(machine.command_line())
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(initrd)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("qemu-system-x86_64 cannot be run")?,
    );
    let output = BufReader::new(qemu.0.stdout.take().context("it is piped")?);
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in output.split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let mut log = File::create(console.log).with_context(|| console.log.display().to_string())?;
    let mut said = Said::default();
    let end = Instant::now() + limit;
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                writeln!(log, "{line}")?;
                if let Some(words) = said.hear(&line) {
                    println!("{:>6} {words}", console.label);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                said.broken = Some(format!("the guest was not done after {} s", limit.as_secs()));
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if !said.is_done {
        said.broken.get_or_insert_with(|| "the guest is gone".to_owned());
    }
    if let Some(why) = &said.broken {
        println!("{:>6} broke off: {why}; its console ends so:", console.label);
        let all = fs::read_to_string(console.log)?;
        let lines: Vec<&str> = all.lines().collect();
        let end = &lines[lines.len().saturating_sub(CONSOLE_END_LINES)..];
        end.iter().for_each(|line| println!("{:>6} # {line}", console.label));
    }
    Ok(said)
}

impl Said {
    /// What of the line is for the terminal.
    fn hear<'a>(&mut self, line: &'a str) -> Option<&'a str> {
        // The kernel may have begun the line with words of its own.
        let Some((_, words)) = line.split_once("@@ ") else {
            if line.contains("Kernel panic") {
                self.broken = Some(line.to_owned());
            }
            return line.starts_with("   | ").then_some(line);
        };
        if let Some(passed) = words.strip_prefix("PASS ") {
            let test = passed.rsplit_once(" (").map_or(passed, |(test, _)| test);
            self.outcomes.insert(test.to_owned(), Became::Passed);
        } else if let Some((test, why)) = words.strip_prefix("SKIP ").and_then(|rest| rest.split_once(": ")) {
            self.outcomes.insert(test.to_owned(), Became::Skipped(why.to_owned()));
        } else if let Some(part) = words.strip_prefix("PART ") {
            self.left_out.push(part.to_owned());
        } else if let Some((test, why)) = words.strip_prefix("FAIL ").and_then(|rest| rest.split_once(": ")) {
            self.outcomes.insert(test.to_owned(), Became::Failed(why.to_owned()));
        } else if let Some((cost, name)) = words.strip_prefix("COST ").and_then(|rest| rest.split_once(' ')) {
            self.costs.extend(cost.parse().ok().map(|cost| (name.to_owned(), cost)));
        } else if let Some(why) = words.strip_prefix("BROKEN ") {
            self.broken = Some(why.to_owned());
        } else if words == "END" {
            self.is_done = true;
        }
        Some(words)
    }
}

/// QEMU, ended with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::{Became, Said};

    #[test]
    fn what_became_of_each_test_is_heard_also_behind_the_kernels_words() {
        let mut said = Said::default();
        for line in [
            "@@ KERNEL 6.12.1",
            "@@ PASS kernel a_test (0.3 s)",
            "[    2.1] late: @@ FAIL e2e b_test: thread 'b' panicked at x.rs:1: no: (2.0 s)",
            "words of nobody",
            "@@ PART e2e c_test: no IPv6",
            "@@ PASS e2e c_test (0.1 s)",
            "@@ SKIP e2e d_test: no namespaces: none",
            "@@ COST 1463.5 packet, homing l2",
            "@@ END",
        ] {
            said.hear(line);
        }
        assert_eq!(said.outcomes["kernel a_test"], Became::Passed);
        assert_eq!(said.outcomes["e2e c_test"], Became::Passed);
        assert_eq!(said.outcomes["e2e d_test"], Became::Skipped("no namespaces: none".to_owned()));
        let failed = &said.outcomes["e2e b_test"];
        assert!(matches!(failed, Became::Failed(why) if why.contains("panicked at x.rs")), "{failed:?}");
        assert_eq!((said.outcomes.len(), said.broken, said.is_done), (4, None, true));
        assert_eq!(said.left_out, ["e2e c_test: no IPv6"]);
        assert_eq!(said.costs, [("packet, homing l2".to_owned(), 1463.5)]);
    }

    #[test]
    fn a_kernel_that_panics_is_heard() {
        let mut said = Said::default();
        said.hear("[    3.0] Kernel panic - not syncing: Attempted to kill init!");
        assert!(said.broken.is_some_and(|why| why.contains("Attempted to kill init")));
    }
}
