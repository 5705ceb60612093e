//! What of the model is on the screen: three lines above, the table, one line below. Usable at 80 by 24.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};

use super::model::{Asked, Mode, Model, Row};
use crate::admin::report::{AppStatus, Status, WorkerStatus};
use crate::cli::plain::plain;
use crate::cli::status::{memory, span};

const HELP: &str = "
 up, down, j, k      choose a line, PgUp and PgDn by pages
 Home, End, g, G     the first, the last
 Enter               more of it: its reason, its history, its last output

 s, S                sort by the next column; turn the order round
 /                   show only names with a text in them; Esc shows all again
 p                   hold the picture still

 d, u                drain the worker, or all of the app; take that back
 R                   restart the app's workers, one after the other
                     (each asks before it does something)

 q, Esc, Ctrl-C      end

 CLIENTS are addresses bound to a worker, CONNS open connections, both paths'.
 REQ/S are requests of the HTTP path: nobody here sees the kernel path's.";

const KEYS: &str = "Enter more  s sort  / filter  d drain  u undrain  R restart  ? help  q quit";

/// Lines for details below the table.
const DETAILS: u16 = 12;
/// Lines among them of what a worker wrote last.
const OUTPUT: usize = 6;

pub(super) fn draw(model: &mut Model, frame: &mut Frame<'_>) {
    let details = if model.mode == Mode::Details { DETAILS.min(frame.area().height / 2) } else { 0 };
    let parts = [
        Constraint::Length(3),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(details),
        Constraint::Length(1),
    ];
    let [above, head, table, below, foot] = Layout::vertical(parts).areas(frame.area());
    model.height = usize::from(table.height);
    let model = scrolled(model);
    let Some(status) = &model.status else { return };
    frame.render_widget(summary(model, status), above);
    let title = format!(
        "{:<18}{:<10}{:>8}{:>7}{:>8}{:>9}{:>10}{:>10}",
        "WORKER", "STATE", "CLIENTS", "CONNS", "REQ/S", "RESTARTS", "MEMORY", "UP"
    );
    frame.render_widget(Line::styled(title, Style::new().add_modifier(Modifier::REVERSED)), head);
    let rows = model.rows();
    let chosen = model.chosen_of(&rows);
    let shown = rows.iter().enumerate().skip(model.offset).take(model.height);
    let lines: Vec<Line<'_>> = shown
        .map(|(at, row)| {
            let line = match row {
                Row::App(app) => app_line(model, app),
                Row::Worker(worker) => worker_line(model, worker),
            };
            if at == chosen { line.patch_style(Style::new().add_modifier(Modifier::REVERSED)) } else { line }
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), table);
    if let Some(row) = rows.get(chosen).filter(|_| details > 0) {
        let block = Block::bordered().title(format!(" {} ", row.id()));
        frame.render_widget(Paragraph::new(more(row, model.now)).wrap(Wrap { trim: false }).block(block), below);
    }
    frame.render_widget(footer(model), foot);
    if model.mode == Mode::Help {
        let area = centred(frame.area(), 80, HELP.lines().count() as u16 + 2);
        frame.render_widget(Clear, area);
        frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title(" homing top ")), area);
    }
}

/// The model with its offset such that the chosen line is on the screen.
fn scrolled(model: &mut Model) -> &Model {
    let rows = model.rows();
    let (chosen, last) = (model.chosen_of(&rows), rows.len().saturating_sub(model.height));
    let least = (chosen + 1).saturating_sub(model.height);
    model.offset = model.offset.clamp(least, chosen).min(last.max(least));
    model
}

fn summary(model: &Model, status: &Status) -> Text<'static> {
    let kernel = &status.kernel_path;
    let path = if kernel.active {
        let interfaces: Vec<String> = kernel.interfaces.iter().map(|i| format!("{} {}", i.name, i.mode)).collect();
        format!("kernel path: XDP on {}", if interfaces.is_empty() { "-".into() } else { interfaces.join(", ") })
    } else {
        format!("kernel path off: {}", kernel.reason.as_deref().unwrap_or("no reason given"))
    };
    let up = span(status.uptime_seconds);
    let (clients, connections, held, promoted) = status.apps.iter().fold((0, 0, 0, 0), |sum, app| {
        (sum.0 + app.clients, sum.1 + app.connections, sum.2 + app.queued, sum.3 + app.promoted_addresses)
    });
    let per_second = |names: &[&str]| model.rate(names).map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}/s"));
    let refused: Vec<&str> = status.counters.keys().map(String::as_str).filter(|name| is_refusal(name)).collect();
    let second = format!(
        "clients {clients}   connections {connections} (new: kernel path {}, HTTP path {})   promoted {promoted}",
        per_second(&["established"]),
        per_second(&["http_connections"]),
    );
    let third = format!(
        "requests {}   held {held}   refused {}   errors {}   new WebSockets {}",
        per_second(&["http_requests"]),
        per_second(&refused),
        per_second(&["http_upstream_error", "http_upstream_broke", "http_upstream_timeout"]),
        per_second(&["http_tunnels_opened"]),
    );
    let first = Line::from(vec![
        Span::styled(format!("homing {}", status.version), Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!("  pid {}  up {up}   ", status.pid)),
        Span::styled(path, color(model, if kernel.active { Color::Reset } else { Color::Yellow })),
    ]);
    Text::from(vec![first, second.into(), third.into()])
}

/// Whether the counter is one of something that was kept out.
fn is_refusal(counter: &str) -> bool {
    counter.starts_with("http_refused_") || ["_denied", "_too_fast"].iter().any(|end| counter.ends_with(end))
}

fn app_line(model: &Model, app: &AppStatus) -> Line<'static> {
    let requests: f64 =
        app.workers.iter().filter_map(|worker| model.rate(&[&worker.id])).fold(0.0, |sum, rate| sum + rate);
    let restarts: u64 = app.workers.iter().map(|worker| u64::from(worker.restarts)).sum();
    let bytes: u64 = app.workers.iter().filter_map(|worker| worker.memory_bytes).sum();
    let text = format!(
        "{:<18}{:<10}{:>8}{:>7}{:>8.1}{:>9}{:>10}{:>10}",
        cut(&app.name, 17),
        cut(&app.state, 9),
        app.clients,
        app.connections,
        requests,
        restarts,
        memory(bytes),
        app.path,
    );
    Line::styled(text, color(model, of_state(&app.state)).add_modifier(Modifier::BOLD))
}

fn worker_line(model: &Model, worker: &WorkerStatus) -> Line<'static> {
    let up = worker.pid.and(worker.started_at).map_or_else(|| "-".to_owned(), |at| span(model.now.saturating_sub(at)));
    let text = format!(
        "  {:<16}{:<10}{:>8}{:>7}{:>8}{:>9}{:>10}{up:>10}",
        cut(&worker.id, 15),
        cut(&worker.state, 9),
        worker.clients,
        worker.connections,
        model.rate(&[&worker.id]).map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}")),
        worker.restarts,
        worker.memory_bytes.map_or_else(|| "-".to_owned(), memory),
    );
    Line::styled(text, color(model, of_state(&worker.state)))
}

fn more(row: &Row<'_>, now: u64) -> Text<'static> {
    let mut lines: Vec<Line<'static>> = Vec::new();
    match row {
        Row::App(app) => {
            lines.push(format!("listens on {}", app.listen.join(" ")).into());
            lines.push(format!("affinity {}, path {}", app.affinity, app.path).into());
            lines.push(format!("{} to {} workers, {} requests held", app.min, app.max, app.queued).into());
            if app.restarting {
                lines.push("a restart is under way".into());
            }
            lines.extend(app.restart_failed.iter().map(|why| format!("the last restart was stopped: {why}").into()));
        }
        Row::Worker(worker) => {
            let pid = worker.pid.map_or_else(|| "no process".to_owned(), |pid| format!("pid {pid}"));
            let address = worker.address.as_deref().unwrap_or("no address");
            lines.push(format!("{pid}, {address}, {} requests so far", worker.requests).into());
            lines.extend(worker.reason.iter().map(|reason| plain(reason).into_owned().into()));
            // The end of what it wrote says more than the rest.
            let last = worker.last_output.len().saturating_sub(OUTPUT);
            lines.extend(worker.last_output[last..].iter().map(|line| format!("| {}", plain(line)).into()));
            lines.extend(worker.history.iter().rev().map(|past| {
                let ago = span(now.saturating_sub(past.at));
                format!("{ago:>10} ago  {}", plain(&past.state)).into()
            }));
        }
    }
    Text::from(lines)
}

fn footer(model: &Model) -> Line<'static> {
    let question = |asked: &Asked| match asked {
        Asked::Drain(what) => format!("Drain {what}: no new clients, those who are there stay. Sure? y/n"),
        Asked::Undrain(what) => format!("Let {what} have new clients again. Sure? y/n"),
        Asked::Restart(app) => format!("Restart all workers of {app}, one after the other. Sure? y/n"),
    };
    let alarming = |text: String| Line::styled(text, color(model, Color::Red).add_modifier(Modifier::BOLD));
    match (&model.mode, &model.answer, &model.trouble) {
        (Mode::Confirm(asked), ..) => {
            Line::styled(question(asked), color(model, Color::Yellow).add_modifier(Modifier::BOLD))
        }
        (Mode::Filter, ..) => format!("/{}_   Enter keeps it, Esc shows all", model.filter).into(),
        (_, Some(Err(error)), _) => alarming(error.clone()),
        (_, Some(Ok(done)), _) => Line::styled(done.clone(), color(model, Color::Green)),
        (.., Some(trouble)) => alarming(format!("No answer, this is what was: {trouble}")),
        _ => {
            let mut notes = Vec::new();
            if model.is_paused {
                notes.push("paused".to_owned());
            }
            if !model.filter.is_empty() {
                notes.push(format!("only /{}", model.filter));
            }
            if model.sort.name() != "name" || model.is_reversed {
                let turned = if model.is_reversed { ", turned round" } else { "" };
                notes.push(format!("by {}{turned}", model.sort.name()));
            }
            notes.push(KEYS.to_owned());
            notes.join("  ").into()
        }
    }
}

fn color(model: &Model, color: Color) -> Style {
    if model.has_color && color != Color::Reset { Style::new().fg(color) } else { Style::new() }
}

fn of_state(state: &str) -> Color {
    match state {
        "failed" | "backoff" => Color::Red,
        "starting" | "draining" | "degraded" => Color::Yellow,
        "stopped" => Color::DarkGray,
        _ => Color::Reset,
    }
}

/// The beginning, where it is longer.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

fn centred(area: Rect, width: u16, height: u16) -> Rect {
    let (width, height) = (width.min(area.width), height.min(area.height));
    Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

    use super::*;
    use crate::admin::server::Order;
    use crate::cli::top::model::{Effect, Event};

    fn status(requests: u64, workers: usize) -> Box<Status> {
        let worker = |number: usize| {
            serde_json::json!({
                "id": format!("sales/{number}"), "pid": 100 + number, "state": if number == 1 { "failed" } else { "ready" },
                "reason": (number == 1).then_some("exited with status 1"), "last_output": ["Traceback:\u{1b}[2J"],
                "generation": 1, "clients": number, "connections": 10 - number % 10, "requests": requests * number as u64,
                "restarts": 0, "memory_bytes": 120_000_000, "address": "127.0.0.1:1", "started_at": 1_000,
            })
        };
        let app = |name: &str, workers: Vec<serde_json::Value>| {
            serde_json::json!({
                "name": name, "listen": ["0.0.0.0:8080"], "affinity": "auto", "path": "both", "state": "ready", "clients": 3,
                "connections": 30, "promoted_addresses": 0, "queued": 2, "min": 1, "max": 4, "workers": workers,
            })
        };
        let way = serde_json::json!({ "by": "v2", "reason": null });
        let status = serde_json::json!({
            "version": "0.1.0", "pid": 7, "uptime_seconds": 61,
            "kernel_path": { "active": true, "reason": null, "interfaces": [{ "name": "eth0", "mode": "native" }] },
            "isolation": { "processes": way, "memory": way, "cpu": way, "polling_ms": 500 },
            "apps": [app("sales", (0..workers).map(worker).collect()), app("planning", vec![])],
            "counters": { "http_requests": requests, "http_refused_full": requests, "established": 5 },
        });
        Box::new(serde_json::from_value(status).expect("a status"))
    }

    struct Screen {
        model: Model,
        terminal: Terminal<TestBackend>,
    }

    impl Screen {
        fn new(height: u16, workers: usize) -> Self {
            let terminal = Terminal::new(TestBackend::new(80, height)).expect("a buffer");
            let mut screen = Self { model: Model::new(false), terminal };
            screen.look(0, 0, workers);
            screen
        }

        fn look(&mut self, at: u64, requests: u64, workers: usize) {
            let status = Ok(status(requests, workers));
            let at = Duration::from_secs(at);
            assert!(self.model.update(Event::Status { at, now: 4_661, status }).is_none());
        }

        fn key(&mut self, code: KeyCode) -> Option<Effect> {
            // The height of a page is known from drawing.
            self.text();
            self.model.update(Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
        }

        fn keys(&mut self, keys: &str) -> Option<Effect> {
            keys.chars().fold(None, |_, key| self.key(KeyCode::Char(key)))
        }

        fn text(&mut self) -> String {
            self.terminal.draw(|frame| draw(&mut self.model, frame)).expect("drawn");
            let buffer = self.terminal.backend().buffer();
            let line = |y| (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
            (0..buffer.area.height).map(|y| line(y).trim_end().to_owned() + "\n").collect()
        }

        fn chosen(&mut self) -> String {
            let rows = self.model.rows();
            rows[self.model.chosen_of(&rows)].id().to_owned()
        }
    }

    #[test]
    fn the_picture_at_80_by_24() {
        let mut screen = Screen::new(24, 3);
        screen.look(2, 20, 3);
        let text = screen.text();
        let expected = "\
homing 0.1.0  pid 7  up 1 m 1 s   kernel path: XDP on eth0 native
clients 6   connections 60 (new: kernel path 0.0/s, HTTP path -)   promoted 0
requests 10.0/s   held 4   refused 10.0/s   errors -   new WebSockets -
WORKER            STATE      CLIENTS  CONNS   REQ/S RESTARTS    MEMORY        UP
sales             ready            3     30    30.0        0    360 MB      both
  sales/0         ready            0     10     0.0        0    120 MB   1 h 1 m
  sales/1         failed           1      9    10.0        0    120 MB   1 h 1 m
  sales/2         ready            2      8    20.0        0    120 MB   1 h 1 m
planning          ready            3     30     0.0        0      0 MB      both
";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.trim_end().ends_with("R restart  ? help  q quit"), "{text}");
    }

    #[test]
    fn keys_choose_and_the_table_follows() {
        let mut screen = Screen::new(10, 30);
        assert_eq!(screen.chosen(), "sales");
        screen.keys("jj");
        assert_eq!(screen.chosen(), "sales/1");
        screen.key(KeyCode::End);
        assert_eq!(screen.chosen(), "planning");
        assert!(screen.text().contains("planning"), "{}", screen.text());
        screen.key(KeyCode::PageUp);
        assert_eq!(screen.chosen(), "sales/26");
        assert!(screen.text().contains("sales/26"), "{}", screen.text());
        screen.keys("gk");
        assert_eq!(screen.chosen(), "sales");
        // What is chosen stays chosen when it moves, and when it is gone the first line is.
        screen.keys("jjjsss");
        assert_eq!(screen.chosen(), "sales/2");
        screen.look(9, 9, 2);
        assert_eq!(screen.chosen(), "sales");
    }

    #[test]
    fn sorting_and_filtering() {
        let mut screen = Screen::new(24, 3);
        screen.keys("s");
        let order = |screen: &Screen| screen.model.rows().iter().map(|row| row.id().to_owned()).collect::<Vec<_>>();
        assert_eq!(order(&screen), ["sales", "sales/2", "sales/1", "sales/0", "planning"]);
        screen.keys("S");
        assert_eq!(order(&screen), ["planning", "sales", "sales/0", "sales/1", "sales/2"]);
        assert!(screen.text().contains("by clients, turned round"), "{}", screen.text());
        screen.keys("S/es/1");
        assert!(screen.text().contains("/es/1_"), "{}", screen.text());
        screen.key(KeyCode::Enter);
        assert_eq!(order(&screen), ["sales", "sales/1"]);
        screen.key(KeyCode::Esc);
        assert_eq!(order(&screen).len(), 5);
    }

    #[test]
    fn orders_are_given_after_a_yes_alone() {
        let mut screen = Screen::new(24, 3);
        assert!(screen.keys("jjd").is_none());
        assert!(screen.text().contains("Drain sales/1: no new clients, those who are there stay. Sure? y/n"));
        assert!(screen.keys("n").is_none());
        assert!(screen.keys("y").is_none(), "nothing is asked any more");
        let drained = screen.keys("dy");
        assert!(matches!(drained, Some(Effect::Give(Order::Drain { worker, undo: false })) if worker == "sales/1"));
        let undrained = screen.keys("uy");
        assert!(matches!(undrained, Some(Effect::Give(Order::Drain { worker, undo: true })) if worker == "sales/1"));
        let restarted = screen.keys("Ry");
        assert!(matches!(restarted, Some(Effect::Give(Order::Restart { app, rolling: true })) if app == "sales"));
        screen.model.update(Event::Answer(Err("no app is called that".into())));
        assert!(screen.text().contains("no app is called that"));
    }

    #[test]
    fn details_help_trouble_and_the_end() {
        let mut screen = Screen::new(24, 3);
        screen.keys("jj");
        screen.key(KeyCode::Enter);
        let text = screen.text();
        assert!(text.contains("exited with status 1") && text.contains("| Traceback:^[[2J"), "{text}");
        screen.key(KeyCode::Esc);
        assert!(!screen.text().contains("Traceback"));
        screen.keys("?");
        let help = screen.text();
        assert!(HELP.lines().all(|line| help.contains(line.trim())), "all of it fits: {help}");
        screen.keys("x");
        screen.model.update(Event::Status { at: Duration::ZERO, now: 0, status: Err("cannot reach homing".into()) });
        assert!(screen.text().contains("No answer, this is what was: cannot reach homing"), "{}", screen.text());
        assert!(screen.text().contains("sales/2"), "the last picture stays");
        assert!(matches!(screen.keys("q"), Some(Effect::End)));
        let interrupt = Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(matches!(screen.model.update(interrupt), Some(Effect::End)));
    }

    #[test]
    fn a_screen_of_no_size_is_drawn_on_all_the_same() {
        for (width, height) in [(1, 1), (20, 3), (80, 5), (300, 100)] {
            let mut model = Model::new(true);
            model.update(Event::Status { at: Duration::ZERO, now: 0, status: Ok(status(1, 9)) });
            for mode in [Mode::Table, Mode::Details, Mode::Help, Mode::Filter] {
                model.mode = mode;
                let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a buffer");
                terminal.draw(|frame| draw(&mut model, frame)).expect("drawn");
            }
        }
    }
}
