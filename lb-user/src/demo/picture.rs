//! The live picture of `homing demo`: one line a client, redrawn in place on a terminal, told once elsewhere.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use super::client::{CHECKS, Outcome};

/// Width of the bar of a finished client.
const BAR: u32 = 20;

/// A client and what it has seen so far.
pub struct Row {
    pub who: String,
    pub outcome: Outcome,
}

/// Clients under one heading.
pub struct Group {
    pub title: String,
    pub rows: Vec<Row>,
}

/// All groups, line by line, at most 80 columns wide.
pub fn render(groups: &[Group]) -> Vec<String> {
    let mut lines = Vec::new();
    for group in groups {
        lines.push(group.title.clone());
        lines.extend(group.rows.iter().map(line));
        lines.push(String::new());
    }
    lines
}

fn line(row: &Row) -> String {
    let outcome = &row.outcome;
    let path = match outcome.forwarded {
        Some(true) => "HTTP path",
        Some(false) => "kernel path",
        None => "",
    };
    let worker = outcome.worker.as_deref().unwrap_or("…");
    let filled = (outcome.ok * BAR / CHECKS) as usize;
    let mut line =
        format!("  {:<12} {path:<11} {worker:<14} {:<20} {:>3}/{CHECKS}", row.who, "#".repeat(filled), outcome.ok);
    if outcome.failed > 0 {
        let _ = write!(line, "  {} lost", outcome.failed);
    }
    if let Some(error) = &outcome.error {
        let _ = write!(line, "\n    {error}");
    }
    line
}

/// Draws on stdout.
pub struct Canvas {
    in_place: bool,
    lines_drawn: usize,
}

impl Canvas {
    pub fn new() -> Self {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { in_place: io::stdout().is_terminal() && !is_dumb, lines_drawn: 0 }
    }

    /// Redraws; without a terminal only the `last` picture is printed.
    pub fn draw(&mut self, groups: &[Group], last: bool) {
        if !self.in_place && !last {
            return;
        }
        let lines = render(groups);
        let mut out = String::new();
        if self.lines_drawn > 0 {
            let _ = write!(out, "\x1b[{}A\x1b[J", self.lines_drawn);
        }
        for line in &lines {
            let _ = writeln!(out, "{line}");
        }
        self.lines_drawn = if self.in_place { lines.iter().map(|line| line.split('\n').count()).sum() } else { 0 };
        // A reader that has gone away does not end the demo.
        let _ = io::stdout().write_all(out.as_bytes());
        let _ = io::stdout().flush();
    }
}

impl Default for Canvas {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(ok: u32, failed: u32) -> Outcome {
        Outcome {
            worker: Some("demo/1".into()),
            pid: None,
            forwarded: Some(false),
            ok,
            failed,
            elsewhere: 0,
            failure: None,
            error: None,
        }
    }

    #[test]
    fn a_line_shows_who_went_where_by_which_path_and_how_it_went() {
        let rows = vec![
            Row { who: "127.0.0.2".into(), outcome: outcome(100, 0) },
            Row { who: "127.0.0.3".into(), outcome: outcome(40, 2) },
            Row { who: "127.0.0.4".into(), outcome: Outcome::default() },
        ];
        let lines = render(&[Group { title: "By address:".into(), rows }]);
        assert_eq!(
            lines,
            [
                "By address:",
                "  127.0.0.2    kernel path demo/1         #################### 100/100",
                "  127.0.0.3    kernel path demo/1         ########              40/100  2 lost",
                "  127.0.0.4                …                                     0/100",
                "",
            ]
        );
        assert!(lines.iter().all(|line| line.chars().count() <= 80));
    }
}
