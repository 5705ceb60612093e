//! A worker's memory until its end: whether the kernel killed a process of it, or homing has to, and what is then said.

use std::time::Duration;

use super::cgroup::Kills;
use super::process::{Exit, Process};
use super::procfs;
use crate::config::isolation::size_in_words;

/// Between looks where homing keeps the limit: a worker may be over it for as long.
pub const INTERVAL: Duration = Duration::from_millis(500);
/// Between looks where the kernel does: only the word about a killed child is that late.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// Who keeps the limit of one worker.
#[derive(Debug)]
pub struct Watch {
    /// Bytes, where there is a limit.
    pub max: Option<u64>,
    /// Whether the kernel keeps it.
    pub by_kernel: bool,
}

impl Watch {
    /// Waits for the worker's end and says how it came. `say` is told what an operator wants to know before that.
    pub async fn until_end(self, process: &Process, say: impl Fn(String)) -> String {
        let mut counted = process.memory_kills().unwrap_or_default().count;
        let is_idle = process.memory_kills().is_none() && (self.max.is_none() || self.by_kernel);
        let interval = if self.by_kernel || self.max.is_none() { COUNT_INTERVAL } else { INTERVAL };
        let mut killed = false;
        let exit = loop {
            if is_idle {
                break process.exited().await;
            }
            if let Ok(exit) = tokio::time::timeout(interval, process.exited()).await {
                break exit;
            }
            if let Some(kills) = process.memory_kills().filter(|kills| kills.count > counted) {
                // The worker itself may be the one: then its end is seen in a moment.
                if let Ok(exit) = tokio::time::timeout(INTERVAL, process.exited()).await {
                    break exit;
                }
                say(format!("{} of its processes killed: {}", kills.count - counted, self.why(kills)));
                counted = kills.count;
            }
            if !self.by_kernel && !killed && self.max.is_some_and(|max| is_over(process, max)) {
                killed = true;
                if let Err(error) = process.kill_tree(super::Signal::KILL) {
                    say(format!("uses more than memory_max, and could not be killed: {error}"));
                    killed = false;
                }
            }
        };
        if killed {
            return format!("killed: {}", self.over());
        }
        let Some(kills) = process.memory_kills() else { return exit.to_string() };
        match exit {
            _ if kills.count <= counted => exit.to_string(),
            Exit::Signal(libc::SIGKILL) | Exit::Unknown => format!("killed: {}", self.why(kills)),
            _ => format!("{exit}, after a process of it was killed: {}", self.why(kills)),
        }
    }

    fn why(&self, kills: Kills) -> String {
        if kills.own_limit && self.max.is_some() {
            return self.over();
        }
        "the machine, or a limit around homing, had no memory left".to_owned()
    }

    fn over(&self) -> String {
        format!("it used more than memory_max ({})", size_in_words(self.max.unwrap_or_default()))
    }
}

/// Resident memory counts pages that processes share for each of them; only where that is too much they are shared out,
/// which costs more to ask.
fn is_over(process: &Process, max: u64) -> bool {
    if process.memory_bytes() <= max {
        return false;
    }
    let members = process.members().unwrap_or_default();
    let proportional =
        members.into_iter().map(|pid| procfs::proportional_bytes(pid).unwrap_or_else(|| procfs::resident_bytes(pid)));
    proportional.sum::<u64>() > max
}
