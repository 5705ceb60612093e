//! What a command waits for, and how long that may take: one line that changes on a terminal, and elsewhere a line whenever
//! something has changed.

use std::io::{self, IsTerminal as _, Write};

use super::status::{count, span};
use crate::admin::report::{Status, WorkerStatus};

/// Workers that are waited for, in numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Left {
    starting: usize,
    ready: usize,
    /// On their way out.
    pub(super) ending: usize,
    /// Of those that are on their way out.
    pub(super) connections: u64,
    start_within: Option<u64>,
    end_within: Option<u64>,
}

impl Left {
    pub(super) fn of<'a>(workers: impl IntoIterator<Item = &'a WorkerStatus>) -> Self {
        let mut left = Self::default();
        for worker in workers {
            match worker.state.as_str() {
                "starting" => {
                    left.starting += 1;
                    left.start_within = left.start_within.max(worker.ends_within_seconds);
                }
                "ready" => left.ready += 1,
                "draining" => {
                    left.ending += 1;
                    left.connections += worker.connections;
                    left.end_within = left.end_within.max(worker.ends_within_seconds);
                }
                _ => {}
            }
        }
        left
    }

    /// Those of an app, or the one of that name.
    pub(super) fn named(status: &Status, name: &str) -> Self {
        let app = name.split_once('/').map_or(name, |(app, _)| app);
        let workers = status.apps.iter().filter(|it| it.name == app).flat_map(|app| &app.workers);
        Self::of(workers.filter(|worker| app == name || worker.id == name))
    }

    /// Without the times, which pass by themselves.
    fn numbers(&self) -> Self {
        Self { start_within: None, end_within: None, ..self.clone() }
    }

    /// Who is on its way out, for how long at most.
    pub(super) fn endings(&self) -> String {
        let Self { ending, connections, end_within, .. } = self;
        let within = end_within.map_or_else(String::new, |seconds| format!(", for {} at most", span(seconds)));
        format!("{} on {}{within}", count(*connections, "connection"), count(*ending as u64, "draining worker"))
    }

    /// All that a restart waits for.
    pub(super) fn changes(&self) -> String {
        let Self { starting, ready, start_within, .. } = self;
        let within = start_within.map_or_else(String::new, |seconds| format!(" ({} at most)", span(seconds)));
        format!("{starting} starting{within}, {ready} ready; {}", self.endings())
    }
}

pub(super) struct Progress<W> {
    out: W,
    is_terminal: bool,
    last: Option<Left>,
}

impl Progress<io::Stdout> {
    pub(super) fn new() -> Self {
        let out = io::stdout();
        Self { is_terminal: out.is_terminal(), out, last: None }
    }
}

impl<W: Write> Progress<W> {
    /// Who reads it may have gone; what is waited for is waited for all the same.
    pub(super) fn say(&mut self, left: &Left, text: &str) {
        let has_changed = self.last.replace(left.numbers()) != Some(left.numbers());
        if self.is_terminal {
            // Back to the beginning of the line, and nothing after the text.
            let _ = write!(self.out, "\r{text}\u{1b}[K");
        } else if has_changed {
            let _ = writeln!(self.out, "{text}");
        }
        let _ = self.out.flush();
    }

    /// What came of it.
    pub(super) fn end(&mut self, text: &str) {
        if self.is_terminal && self.last.take().is_some() {
            let _ = writeln!(self.out);
        }
        let _ = writeln!(self.out, "{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(id: &str, state: &str, connections: u64, ends_within_seconds: Option<u64>) -> WorkerStatus {
        let told = serde_json::json!({
            "id": id, "pid": null, "state": state, "reason": null, "generation": 1, "clients": 0, "connections": connections,
            "requests": 0, "restarts": 0, "memory_bytes": null, "address": null, "started_at": null,
            "ends_within_seconds": ends_within_seconds,
        });
        serde_json::from_value(told).expect("a worker")
    }

    fn left(within: u64) -> Left {
        Left::of(&[
            worker("a/0", "draining", 2, Some(10)),
            worker("a/1", "draining", 3, Some(within)),
            worker("a/2", "starting", 0, Some(58)),
            worker("a/3", "ready", 7, None),
            worker("a/4", "stopped", 0, None),
        ])
    }

    #[test]
    fn what_is_waited_for_is_said_with_the_longest_that_it_may_take() {
        let said = "1 starting (58 s at most), 1 ready; 5 connections on 2 draining workers, for 9 m 59 s at most";
        assert_eq!(left(599).changes(), said);
        let remote = Left::of(&[worker("a/0", "draining", 1, None)]);
        assert_eq!(remote.endings(), "1 connection on 1 draining worker", "nothing ends it");
    }

    #[test]
    fn a_line_is_written_when_something_changed_and_on_a_terminal_the_line_changes() {
        let said = |is_terminal| {
            let mut progress = Progress { out: Vec::new(), is_terminal, last: None };
            for within in [599, 598] {
                progress.say(&left(within), &within.to_string());
            }
            progress.say(&Left::default(), "0");
            progress.end("done");
            String::from_utf8(progress.out).expect("text")
        };
        assert_eq!(said(false), "599\n0\ndone\n");
        assert_eq!(said(true), "\r599\u{1b}[K\r598\u{1b}[K\r0\u{1b}[K\ndone\n");
    }
}
