//! What an order did, what its command waits for, and how long that may take: one line that changes on a terminal, elsewhere a
//! line whenever something has changed, and with `--json` an object for each of these lines.

use std::io::{self, IsTerminal as _, Write};

use serde::Serialize;

use super::status::{count, span};
use crate::admin::report::{Status, WorkerStatus};

/// A line that an order prints with `--json`.
#[derive(Serialize, Debug)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct OrderLine<'a> {
    /// How far it is. The last line is `done`; an order that fails has none, but an error on stderr and an exit code.
    stage: Stage,
    /// The same in words.
    said: &'a str,
    /// The workers that it is about; none where it is about no workers, or before anything is known of them.
    left: Option<&'a Left>,
}

#[derive(Serialize, Clone, Copy, Debug)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// homing has taken the order.
    Accepted,
    /// It is waited for; one line whenever a number has changed.
    Waiting,
    /// Nothing more is waited for.
    Done,
}

/// Workers that are waited for, in numbers.
#[derive(Serialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Left {
    /// Workers that are not ready yet.
    starting: usize,
    /// Workers that take new clients.
    ready: usize,
    /// Workers on their way out.
    pub(super) draining: usize,
    /// Open ones, of the draining workers.
    pub(super) connections: u64,
    /// In how many seconds the last of those that start is ready or given up; none where none starts.
    starts_within_seconds: Option<u64>,
    /// In how many seconds the last of those that drain is ended, whoever is connected; none where nothing ends it.
    ends_within_seconds: Option<u64>,
}

impl Left {
    pub(super) fn of<'a>(workers: impl IntoIterator<Item = &'a WorkerStatus>) -> Self {
        let mut left = Self::default();
        for worker in workers {
            match worker.state.as_str() {
                "starting" => {
                    left.starting += 1;
                    left.starts_within_seconds = left.starts_within_seconds.max(worker.ends_within_seconds);
                }
                "ready" => left.ready += 1,
                "draining" => {
                    left.draining += 1;
                    left.connections += worker.connections;
                    left.ends_within_seconds = left.ends_within_seconds.max(worker.ends_within_seconds);
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
        Self { starts_within_seconds: None, ends_within_seconds: None, ..self.clone() }
    }

    /// Who is on its way out, for how long at most.
    pub(super) fn endings(&self) -> String {
        let Self { draining, connections, ends_within_seconds, .. } = self;
        let within = ends_within_seconds.map_or_else(String::new, |seconds| format!(", for {} at most", span(seconds)));
        format!("{} on {}{within}", count(*connections, "connection"), count(*draining as u64, "draining worker"))
    }

    /// All that a restart waits for.
    pub(super) fn changes(&self) -> String {
        let Self { starting, ready, starts_within_seconds, .. } = self;
        let within = starts_within_seconds.map_or_else(String::new, |seconds| format!(" ({} at most)", span(seconds)));
        format!("{starting} starting{within}, {ready} ready; {}", self.endings())
    }
}

/// How lines are written.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// A line that changes.
    Terminal,
    Lines,
    Json,
}

pub(super) struct Progress<W> {
    out: W,
    form: Form,
    last: Option<Left>,
}

impl Progress<io::Stdout> {
    pub(super) fn new(json: bool) -> Self {
        let out = io::stdout();
        let form = match json {
            true => Form::Json,
            false if out.is_terminal() => Form::Terminal,
            false => Form::Lines,
        };
        Self { out, form, last: None }
    }
}

// Who reads it may have gone; what is waited for is waited for all the same.
impl<W: Write> Progress<W> {
    /// What homing answered.
    pub(super) fn begin(&mut self, text: &str) {
        self.line(Stage::Accepted, text, None);
    }

    /// What is waited for.
    pub(super) fn say(&mut self, left: &Left, text: &str) {
        let has_changed = self.last.replace(left.numbers()) != Some(left.numbers());
        if self.form == Form::Terminal {
            // Back to the beginning of the line, and nothing after the text.
            let _ = write!(self.out, "\r{text}\u{1b}[K");
            let _ = self.out.flush();
        } else if has_changed {
            self.line(Stage::Waiting, text, Some(left));
        }
    }

    /// What came of it; nothing is said in words where there are none.
    pub(super) fn end(&mut self, text: &str, left: Option<&Left>) {
        if self.form == Form::Terminal && self.last.take().is_some() {
            let _ = writeln!(self.out);
        }
        self.line(Stage::Done, text, left);
    }

    fn line(&mut self, stage: Stage, said: &str, left: Option<&Left>) {
        if self.form == Form::Json {
            let line = OrderLine { stage, said, left };
            let _ = writeln!(self.out, "{}", serde_json::to_string(&line).expect("words and numbers"));
        } else if !said.is_empty() {
            let _ = writeln!(self.out, "{said}");
        }
        let _ = self.out.flush();
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

    fn said(form: Form) -> String {
        let mut progress = Progress { out: Vec::new(), form, last: None };
        progress.begin("taken");
        for within in [599, 598] {
            progress.say(&left(within), &within.to_string());
        }
        progress.say(&Left::default(), "0");
        progress.end("done", None);
        String::from_utf8(progress.out).expect("text")
    }

    #[test]
    fn a_line_is_written_when_something_changed_and_on_a_terminal_the_line_changes() {
        assert_eq!(said(Form::Lines), "taken\n599\n0\ndone\n");
        assert_eq!(said(Form::Terminal), "taken\n\r599\u{1b}[K\r598\u{1b}[K\r0\u{1b}[K\ndone\n");
    }

    #[test]
    fn as_json_each_line_is_an_object_and_the_last_is_done() {
        let lines: Vec<serde_json::Value> =
            said(Form::Json).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let stages: Vec<_> = lines.iter().map(|line| line["stage"].as_str().expect("a word")).collect();
        assert_eq!(stages, ["accepted", "waiting", "waiting", "done"]);
        let left = serde_json::json!({
            "starting": 1, "ready": 1, "draining": 2, "connections": 5,
            "starts_within_seconds": 58, "ends_within_seconds": 599,
        });
        assert_eq!((&lines[1]["said"], &lines[1]["left"]), (&"599".into(), &left));
        assert!(lines[3]["left"].is_null());
    }
}
