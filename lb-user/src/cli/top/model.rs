//! What `homing top` knows, and what a key or a new status does to that. Pure: the clock comes with the events.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::admin::report::{AppStatus, Status, WorkerStatus};
use crate::admin::server::Order;

/// Characters of a filter.
const FILTER_MAX: usize = 40;

/// Something happened.
pub(super) enum Event {
    Key(KeyEvent),
    Resized,
    Status {
        /// Since the start.
        at: Duration,
        /// Unix time, seconds.
        now: u64,
        /// Or why there is none.
        status: Result<Box<Status>, String>,
    },
    /// To an order: what was done, or why nothing was.
    Answer(Result<String, String>),
}

/// Something to do.
#[derive(Debug)]
pub(super) enum Effect {
    End,
    Give(Order),
}

/// What keys mean now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Table,
    /// More of what is chosen.
    Details,
    /// A filter is typed.
    Filter,
    /// An order waits for a yes.
    Confirm(Asked),
    Help,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// APP or APP/N.
    Drain(String),
    Undrain(String),
    /// An app.
    Restart(String),
}

impl Asked {
    fn order(self) -> Order {
        match self {
            Self::Drain(worker) => Order::Drain { worker, undo: false },
            Self::Undrain(worker) => Order::Drain { worker, undo: true },
            Self::Restart(app) => Order::Restart { app, rolling: true },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Name,
    Clients,
    Connections,
    Requests,
    Memory,
    Restarts,
}

impl Sort {
    const ALL: [Self; 6] = [Self::Name, Self::Clients, Self::Connections, Self::Requests, Self::Memory, Self::Restarts];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Clients => "clients",
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::Memory => "memory",
            Self::Restarts => "restarts",
        }
    }

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or_default();
        Self::ALL[(at + 1) % Self::ALL.len()]
    }
}

/// A line of the table.
#[derive(Clone, Copy)]
pub(super) enum Row<'a> {
    App(&'a AppStatus),
    Worker(&'a WorkerStatus),
}

impl Row<'_> {
    /// APP or APP/N.
    pub(super) fn id(&self) -> &str {
        match self {
            Self::App(app) => &app.name,
            Self::Worker(worker) => &worker.id,
        }
    }

    fn app(&self) -> &str {
        let id = self.id();
        id.split_once('/').map_or(id, |(app, _)| app)
    }
}

pub(super) struct Model {
    pub(super) status: Option<Box<Status>>,
    /// When it came.
    at: Duration,
    /// Unix time, seconds.
    pub(super) now: u64,
    /// Per second since the status before, by counter, and by worker's id for its requests.
    rates: HashMap<String, f64>,
    /// Why the last look failed; the status is older.
    pub(super) trouble: Option<String>,
    /// What the last order came to.
    pub(super) answer: Option<Result<String, String>>,
    pub(super) mode: Mode,
    pub(super) sort: Sort,
    pub(super) is_reversed: bool,
    /// Part of the names that are shown.
    pub(super) filter: String,
    /// No new status is shown.
    pub(super) is_paused: bool,
    /// APP or APP/N.
    chosen: Option<String>,
    /// Lines of the table that are on the screen, as last drawn.
    pub(super) height: usize,
    /// The first of them.
    pub(super) offset: usize,
    pub(super) has_color: bool,
}

impl Model {
    pub(super) fn new(has_color: bool) -> Self {
        Self {
            status: None,
            at: Duration::ZERO,
            now: 0,
            rates: HashMap::new(),
            trouble: None,
            answer: None,
            mode: Mode::Table,
            sort: Sort::Name,
            is_reversed: false,
            filter: String::new(),
            is_paused: false,
            chosen: None,
            height: 1,
            offset: 0,
            has_color,
        }
    }

    pub(super) fn update(&mut self, event: Event) -> Option<Effect> {
        match event {
            Event::Resized => {}
            Event::Status { .. } if self.is_paused => {}
            Event::Status { at, now, status: Ok(status) } => self.take(at, now, status),
            Event::Status { status: Err(trouble), .. } => self.trouble = Some(trouble),
            Event::Answer(answer) => self.answer = Some(answer),
            Event::Key(key) => return self.key(key),
        }
        None
    }

    fn take(&mut self, at: Duration, now: u64, status: Box<Status>) {
        self.rates.clear();
        let seconds = at.saturating_sub(self.at).as_secs_f64();
        // Another process counts anew.
        if let Some(old) = self.status.as_ref().filter(|old| old.pid == status.pid && seconds > 0.0) {
            let counted = |status: &Status| -> HashMap<String, u64> {
                let workers = status.apps.iter().flat_map(|app| &app.workers);
                let requests = workers.map(|worker| (worker.id.clone(), worker.requests));
                status.counters.clone().into_iter().chain(requests).collect()
            };
            let before = counted(old);
            let rate = |(name, count): (String, u64)| {
                let before = *before.get(&name)?;
                Some((name, count.saturating_sub(before) as f64 / seconds))
            };
            self.rates = counted(&status).into_iter().filter_map(rate).collect();
        }
        (self.at, self.now, self.trouble) = (at, now, None);
        self.status = Some(status);
    }

    /// Per second, of all of these together; `None` before the second look.
    pub(super) fn rate(&self, names: &[&str]) -> Option<f64> {
        let mut known = names.iter().filter_map(|name| self.rates.get(*name)).peekable();
        known.peek()?;
        Some(known.sum())
    }

    /// Apps, each with its workers below it, in their order and as the filter lets them.
    pub(super) fn rows(&self) -> Vec<Row<'_>> {
        let Some(status) = &self.status else { return Vec::new() };
        let weight = |worker: &WorkerStatus| match self.sort {
            Sort::Name => 0,
            Sort::Clients => worker.clients,
            Sort::Connections => worker.connections,
            Sort::Requests => self.rates.get(&worker.id).map_or(0, |rate| (rate * 1e3) as u64),
            Sort::Memory => worker.memory_bytes.unwrap_or_default(),
            Sort::Restarts => worker.restarts.into(),
        };
        let is_shown = |id: &str| id.contains(&self.filter);
        let mut apps: Vec<&AppStatus> = status.apps.iter().collect();
        // Stable: equals stay in the order of the configuration, and workers in that of their numbers.
        apps.sort_by_key(|app| Reverse(app.workers.iter().map(weight).sum::<u64>()));
        if self.is_reversed {
            apps.reverse();
        }
        let mut rows = Vec::new();
        for app in apps {
            let mut workers: Vec<&WorkerStatus> = app.workers.iter().filter(|worker| is_shown(&worker.id)).collect();
            workers.sort_by_key(|worker| Reverse(weight(worker)));
            if self.is_reversed {
                workers.reverse();
            }
            if is_shown(&app.name) || !workers.is_empty() {
                rows.push(Row::App(app));
                rows.extend(workers.into_iter().map(Row::Worker));
            }
        }
        rows
    }

    /// Which of these lines is chosen: the first one where the chosen one is gone.
    pub(super) fn chosen_of(&self, rows: &[Row<'_>]) -> usize {
        rows.iter().position(|row| Some(row.id()) == self.chosen.as_deref()).unwrap_or_default()
    }

    fn choose(&mut self, step: isize) {
        let rows = self.rows();
        let at = self.chosen_of(&rows).saturating_add_signed(step).min(rows.len().saturating_sub(1));
        self.chosen = rows.get(at).map(|row| row.id().to_owned());
    }

    fn key(&mut self, key: KeyEvent) -> Option<Effect> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return matches!(key.code, KeyCode::Char('c')).then_some(Effect::End);
        }
        match self.mode.clone() {
            Mode::Table | Mode::Details => return self.key_in_table(key.code),
            Mode::Help => self.mode = Mode::Table,
            Mode::Filter => self.key_in_filter(key.code),
            Mode::Confirm(asked) => {
                self.mode = Mode::Table;
                if matches!(key.code, KeyCode::Char('y' | 'Y')) {
                    self.answer = None;
                    return Some(Effect::Give(asked.order()));
                }
            }
        }
        None
    }

    fn key_in_table(&mut self, code: KeyCode) -> Option<Effect> {
        let page = self.height.saturating_sub(1).max(1) as isize;
        self.answer = None;
        match code {
            KeyCode::Char('q') => return Some(Effect::End),
            KeyCode::Esc if self.mode == Mode::Details => self.mode = Mode::Table,
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Esc => return Some(Effect::End),
            KeyCode::Enter if self.mode == Mode::Details => self.mode = Mode::Table,
            KeyCode::Enter => self.mode = Mode::Details,
            KeyCode::Up | KeyCode::Char('k') => self.choose(-1),
            KeyCode::Down | KeyCode::Char('j') => self.choose(1),
            KeyCode::PageUp => self.choose(-page),
            KeyCode::PageDown => self.choose(page),
            KeyCode::Home | KeyCode::Char('g') => self.choose(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.choose(isize::MAX),
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('S') => self.is_reversed = !self.is_reversed,
            KeyCode::Char('p') => self.is_paused = !self.is_paused,
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Char('?' | 'h') => self.mode = Mode::Help,
            KeyCode::Char('d') => self.ask(|row| Asked::Drain(row.id().to_owned())),
            KeyCode::Char('u') => self.ask(|row| Asked::Undrain(row.id().to_owned())),
            KeyCode::Char('R') => self.ask(|row| Asked::Restart(row.app().to_owned())),
            _ => {}
        }
        None
    }

    fn ask(&mut self, what: impl FnOnce(&Row<'_>) -> Asked) {
        let rows = self.rows();
        if let Some(asked) = rows.get(self.chosen_of(&rows)).map(what) {
            self.mode = Mode::Confirm(asked);
        }
    }

    fn key_in_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.mode = Mode::Table,
            KeyCode::Esc => {
                self.filter.clear();
                self.mode = Mode::Table;
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if self.filter.chars().count() < FILTER_MAX => self.filter.push(c),
            _ => {}
        }
    }
}
