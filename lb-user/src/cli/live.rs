//! `homing trace --live`: decisions as they are made, a line each.

use std::io::{self, IsTerminal as _, Write};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use super::plain::plain;
use super::say;
use super::trace::Traced;
use crate::admin::client::{self, AskError, Lines};
use crate::admin::report::LiveQuery;
use crate::config::file::duration;
use crate::live::Line;
use crate::live::line::{Connection, Missed, Request};

/// Decisions a second that anybody can ask for.
const RATE_MAX: i64 = 10_000;
/// How long a homing may take to take over from another, before who listens gives up.
const TAKEOVER: Duration = Duration::from_secs(5);
/// Between looks whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Args)]
#[group(skip)]
pub(super) struct Options {
    /// Follow decisions as they are made, of all apps unless one is named, until Ctrl-C.
    ///
    /// One line for each new connection and for each request of the HTTP path. At most four may listen at once. Where nobody does it costs nothing.
    #[arg(long)]
    pub(super) live: bool,
    /// Show one decision in N.
    #[arg(long, value_name = "N", requires = "live", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    sample: u32,
    /// Show this many decisions a second of each path at most; how many more there were is told.
    #[arg(long, value_name = "N", requires = "live", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=RATE_MAX))]
    rate: u32,
    /// End after N decisions.
    #[arg(long, value_name = "N", requires = "live", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time, such as 30s or 5m.
    #[arg(long = "for", value_name = "TIME", requires = "live", value_parser = time)]
    time: Option<Duration>,
}

fn time(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
    duration(text, Duration::from_millis(1), LONGEST)
}

/// Shows decisions until enough were, Ctrl-C, or the end of homing.
pub(super) async fn live(socket: &Path, traced: Traced, options: &Options, json: bool) -> Result<(), AskError> {
    let stdout = io::stdout();
    let is_terminal = stdout.is_terminal();
    let has_colour = is_terminal && super::wants_colour();
    let width =
        if is_terminal { ratatui::crossterm::terminal::size().ok().map(|(width, _)| width.into()) } else { None };
    let mut printer = Printer { out: stdout.lock(), json, has_colour, width, shown: 0, missed: 0 };
    let ended = follow(socket, &traced, options, &mut printer).await;
    match ended {
        Ok(()) => {}
        // Who read it has seen enough.
        Err(Stop::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        Err(Stop::Output(error)) => return Err(AskError::Refused(format!("cannot write the decisions: {error}"))),
        Err(Stop::Homing(error)) => return Err(error),
    }
    if !json {
        say(&printer.summary(options));
    }
    Ok(())
}

enum Stop {
    Homing(AskError),
    Output(io::Error),
}

async fn follow(
    socket: &Path,
    traced: &Traced,
    options: &Options,
    printer: &mut Printer<impl Write>,
) -> Result<(), Stop> {
    let mut interrupt =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map_err(Stop::Output)?;
    let end = options.time.map(|time| Instant::now() + time);
    let mut lines = listen(socket, traced, options).await.map_err(Stop::Homing)?;
    // On stderr: what is on stdout is decisions alone.
    let whose = match (&traced.app, traced.client) {
        (None, _) => "all apps".to_owned(),
        (Some(app), None) => app.clone(),
        (Some(app), Some(client)) => format!("{client} at {app}"),
    };
    let how = if end.is_none() { "; Ctrl-C ends" } else { "" };
    say(&format_args!("homing: following the decisions on {whose}{how}"));
    printer.heading().map_err(Stop::Output)?;
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            _ = interrupt.recv() => return Ok(()),
            () = until(end) => return Ok(()),
        };
        let Some(line) = line else {
            lines = again(socket, traced, options).await.map_err(Stop::Homing)?;
            say(&"homing: another homing has taken over; following its decisions");
            continue;
        };
        // A kind of line that a later version has.
        let Ok(line) = serde_json::from_slice::<Line>(&line) else { continue };
        printer.show(&line, options).map_err(Stop::Output)?;
        if options.count.is_some_and(|count| printer.shown >= count) {
            return Ok(());
        }
    }
}

async fn listen(socket: &Path, Traced { app, client }: &Traced, options: &Options) -> Result<Lines, AskError> {
    let query = LiveQuery { app: app.clone(), client: *client, sample: options.sample, rate: options.rate };
    let query = serde_urlencoded::to_string(query).expect("a name, an address and numbers");
    client::lines(socket, &format!("/v1/live?{query}")).await
}

/// At the homing that has taken over, if one has.
async fn again(socket: &Path, traced: &Traced, options: &Options) -> Result<Lines, AskError> {
    let patience = Instant::now() + TAKEOVER;
    loop {
        match listen(socket, traced, options).await {
            Ok(lines) => return Ok(lines),
            Err(AskError::Refused(why)) if Instant::now() >= patience => return Err(AskError::Refused(why)),
            Err(_) if Instant::now() >= patience => return Err(AskError::Refused("homing has ended".to_owned())),
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

struct Printer<W> {
    out: W,
    json: bool,
    has_colour: bool,
    /// Of the terminal.
    width: Option<usize>,
    shown: u64,
    missed: u64,
}

impl<W: Write> Printer<W> {
    fn heading(&mut self) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let row = Row { time: "UTC", client: "CLIENT", place: "TO", path: "PATH", rule: "RULE", more: "ANSWER" };
        self.row(&row, None)
    }

    fn show(&mut self, line: &Line, options: &Options) -> io::Result<()> {
        match line {
            Line::Alive => return Ok(()),
            Line::Missed(Missed { decisions, .. }) => self.missed += decisions,
            Line::Connection(_) | Line::Request(_) => self.shown += 1,
        }
        if self.json {
            let text = serde_json::to_string(line).expect("texts and numbers are JSON");
            writeln!(self.out, "{text}")?;
            return self.out.flush();
        }
        match line {
            Line::Connection(connection) => self.connection(connection),
            Line::Request(request) => self.request(request),
            Line::Missed(Missed { time, decisions }) => {
                writeln!(self.out, "{:<12} {decisions} more were not shown: {}", clock(time), too_fast(options))?;
                self.out.flush()
            }
            Line::Alive => Ok(()),
        }
    }

    fn connection(&mut self, connection: &Connection) -> io::Result<()> {
        let (path, colour) = match connection.path.as_str() {
            "kernel" => ("kernel", GREEN),
            "http" => ("-> HTTP", YELLOW),
            _ => ("refused", RED),
        };
        let row = Row {
            time: clock(&connection.time),
            client: &connection.client.to_string(),
            // Where the HTTP path goes on, the worker is yet to be found, or is not reached from here.
            place: connection.worker.as_deref().filter(|_| connection.path == "kernel").unwrap_or(&connection.app),
            path,
            rule: &connection.rule,
            more: "",
        };
        self.row(&row, Some(colour))
    }

    fn request(&mut self, request: &Request) -> io::Result<()> {
        let held = request.held_ms.filter(|held| *held >= 1.0).map(|held| format!(" held {held:.0} ms"));
        let target = plain(&request.target);
        let row = Row {
            time: clock(&request.time),
            client: &request.client.to_string(),
            place: request.worker.as_deref().or(request.app.as_deref()).unwrap_or("-"),
            path: "HTTP",
            rule: request.rule.as_deref().or(request.refused.as_deref()).unwrap_or("-"),
            more: &format!("{}{} {} {target}", request.status, held.unwrap_or_default(), plain(&request.method)),
        };
        self.row(&row, Some(if request.refused.is_some() { RED } else { YELLOW }))
    }

    fn row(&mut self, row: &Row<'_>, colour: Option<&str>) -> io::Result<()> {
        let Row { time, client, place, path, rule, more } = row;
        let text = format!("{time:<12} {client:<15} {place:<12} {path:<7} {rule:<14} {more}");
        let mut text = text.trim_end();
        if let Some((end, _)) = self.width.and_then(|width| text.char_indices().nth(width)) {
            text = &text[..end];
        }
        match colour.filter(|_| self.has_colour) {
            Some(colour) => writeln!(self.out, "\u{1b}[{colour}m{text}\u{1b}[0m")?,
            None => writeln!(self.out, "{text}")?,
        }
        self.out.flush()
    }

    fn summary(&self, options: &Options) -> String {
        let Self { shown, missed, .. } = self;
        let sample = if options.sample > 1 { format!(", one in {}", options.sample) } else { String::new() };
        match missed {
            0 => format!("homing: {shown} decisions{sample}."),
            _ => format!("homing: {shown} decisions{sample}; {missed} more were not shown: {}.", too_fast(options)),
        }
    }
}

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

struct Row<'a> {
    time: &'a str,
    client: &'a str,
    /// A worker, or an app.
    place: &'a str,
    path: &'a str,
    rule: &'a str,
    more: &'a str,
}

/// The time of the day, to the millisecond.
fn clock(time: &str) -> &str {
    let clock = time.split_once('T').map_or(time, |(_, clock)| clock);
    clock.trim_end_matches('Z')
}

fn too_fast(options: &Options) -> String {
    format!("they came faster than --rate {}; see --sample, or name an app and a client", options.rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: Options = Options { live: true, sample: 10, rate: 100, count: None, time: None };

    fn printed(width: Option<usize>, has_colour: bool, lines: &[Line]) -> String {
        let mut printer = Printer { out: Vec::new(), json: false, has_colour, width, shown: 0, missed: 0 };
        printer.heading().expect("memory");
        lines.iter().for_each(|line| printer.show(line, &OPTIONS).expect("memory"));
        String::from_utf8(printer.out).expect("text")
    }

    fn connection(path: &str, rule: &str, worker: Option<&str>) -> Line {
        Line::Connection(Connection {
            time: "2026-11-21T14:16:46.250Z".to_owned(),
            client: "203.0.113.107".parse().unwrap(),
            port: 40_000,
            app: "sales".to_owned(),
            path: path.to_owned(),
            rule: rule.to_owned(),
            worker: worker.map(str::to_owned),
        })
    }

    fn request(target: &str, held_ms: f64) -> Line {
        Line::Request(Request {
            time: "2026-11-21T14:16:46.251Z".to_owned(),
            client: "203.0.113.107".parse().unwrap(),
            port: None,
            app: Some("sales".to_owned()),
            path: "http".to_owned(),
            rule: Some("cookie_new".to_owned()),
            worker: Some("sales/3".to_owned()),
            method: "GET".to_owned(),
            target: target.to_owned(),
            status: 200,
            held_ms: Some(held_ms),
            ms: 1_502.0,
            refused: None,
            request_id: "7f".to_owned(),
        })
    }

    #[test]
    fn decisions_are_a_table_that_fits_a_terminal() {
        let missed = Missed { time: "2026-11-21T14:16:47.000Z".to_owned(), decisions: 123 };
        let lines = [
            connection("kernel", "ring", Some("sales/2")),
            connection("http", "promoted", None),
            request("/", 1_500.2),
            connection("none", "client_too_fast", None),
            Line::Alive,
            Line::Missed(missed),
        ];
        assert_eq!(
            printed(None, false, &lines),
            "UTC          CLIENT          TO           PATH    RULE           ANSWER\n\
             14:16:46.250 203.0.113.107   sales/2      kernel  ring\n\
             14:16:46.250 203.0.113.107   sales        -> HTTP promoted\n\
             14:16:46.251 203.0.113.107   sales/3      HTTP    cookie_new     200 held 1500 ms GET /\n\
             14:16:46.250 203.0.113.107   sales        refused client_too_fast\n\
             14:16:47.000 123 more were not shown: they came faster than --rate 100; see --sample, or name an app and a client\n"
        );
        let narrow = printed(Some(80), false, &[request("/a/long/way/to/somewhere", 0.4)]);
        assert!(narrow.lines().all(|line| line.chars().count() <= 80) && narrow.contains("200 GET /a/"), "{narrow}");
    }

    #[test]
    fn what_a_client_sent_does_not_reach_the_terminal_as_an_order() {
        let shown = printed(None, true, &[request("/\u{1b}[2J", 0.0)]);
        assert!(shown.contains("/^[[2J") && shown.contains("\u{1b}[33m"), "{shown:?}");
    }

    #[test]
    fn the_summary_says_what_was_left_out_and_why() {
        let mut printer = Printer { out: Vec::new(), json: true, has_colour: false, width: None, shown: 0, missed: 0 };
        printer.show(&connection("kernel", "ring", None), &OPTIONS).expect("memory");
        assert_eq!(printer.summary(&OPTIONS), "homing: 1 decisions, one in 10.");
        let missed = Missed { time: String::new(), decisions: 9 };
        printer.show(&Line::Missed(missed), &OPTIONS).expect("memory");
        assert!(printer.summary(&OPTIONS).contains("9 more were not shown: they came faster than --rate 100"));
        let out = String::from_utf8(printer.out).expect("text");
        assert_eq!(out.lines().count(), 2, "an object each: {out}");
    }
}
