//! `homing top`: status, live. `model` is what is known and what a key does to it, `view` is what of it is on the
//! screen; here are the terminal, the clock and the control socket.

mod model;
mod view;

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event as Input, KeyEventKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::status::unix_now;
use super::{DONE, FAILED, Socket, UNREACHABLE, USAGE, block_on, fail};
use crate::admin::client::{self, AskError};
use crate::admin::report::Status;
use crate::admin::server::Order;
use model::{Effect, Event, Model};

/// What the screen is told of at once.
const EVENTS_MAX: usize = 64;
/// Between looks whether a key was pressed while nobody presses one: how long the thread that does that outlives the rest.
const KEY_PAUSE: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    socket: Socket,
    /// Seconds between two looks, 0.2 to 60.
    #[arg(long, short = 'd', value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    delay: Duration,
}

pub(super) const EXAMPLES: &str = "Examples:\n  homing top\n  homing top -d 5      over a slow line\n\n\
    Keys: arrows or j and k choose, Enter shows more, s sorts, / filters, d drains, u undrains, R restarts, ? helps, q ends.";

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.2..=60.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("give seconds from 0.2 to 60".to_owned()),
    }
}

pub(super) fn top(options: &Options) -> u8 {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return fail(USAGE, &"top draws on a terminal, and this is none; homing status prints the same once");
    }
    block_on(run(options))
}

async fn run(Options { socket: Socket { control_socket: socket }, delay }: &Options) -> u8 {
    // Before the screen is taken, so that what is wrong stays to be read.
    let first = match look(socket).await {
        Ok(status) => status,
        Err(error @ (AskError::Unreachable { .. } | AskError::Silent { .. })) => return fail(UNREACHABLE, &error),
        Err(error) => return fail(FAILED, &error),
    };
    let terminal = match ratatui::try_init() {
        Ok(terminal) => terminal,
        Err(error) => return fail(FAILED, &format!("cannot draw on this terminal: {error}")),
    };
    let ended = serve(terminal, socket.clone(), first, *delay).await;
    ratatui::restore();
    match ended {
        Ok(()) => DONE,
        Err(error) => fail(FAILED, &format!("the terminal is gone: {error}")),
    }
}

async fn look(socket: &Path) -> Result<Status, AskError> {
    client::status(socket).await
}

async fn serve(mut terminal: DefaultTerminal, socket: PathBuf, first: Status, delay: Duration) -> io::Result<()> {
    let started = Instant::now();
    let mut model = Model::new(super::wants_colour());
    model.update(Event::Status { at: started.elapsed(), now: unix_now(), status: Ok(Box::new(first)) });
    let (events, mut told) = mpsc::channel(EVENTS_MAX);
    std::thread::spawn({
        let keys = events.clone();
        move || read_keys(&keys)
    });
    let mut looks = interval(delay);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks.tick().await;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    loop {
        terminal.draw(|frame| view::draw(&mut model, frame))?;
        let event = tokio::select! {
            Some(event) = told.recv() => event?,
            _ = looks.tick() => {
                let status = look(&socket).await.map(Box::new).map_err(|error| error.to_string());
                Event::Status { at: started.elapsed(), now: unix_now(), status }
            }
            _ = terminated.recv() => return Ok(()),
            _ = hung_up.recv() => return Ok(()),
        };
        match model.update(event) {
            None => {}
            Some(Effect::End) => return Ok(()),
            Some(Effect::Give(order)) => {
                tokio::spawn(give(socket.clone(), order, events.clone()));
            }
        }
    }
}

/// Beside the screen, which goes on meanwhile.
async fn give(socket: PathBuf, order: Order, events: mpsc::Sender<io::Result<Event>>) {
    let answer = client::order(&socket, &order).await.map_err(|error| error.to_string());
    drop(events.send(Ok(Event::Answer(answer))).await);
}

/// Until nobody listens any more.
fn read_keys(events: &mpsc::Sender<io::Result<Event>>) {
    while !events.is_closed() {
        let read = event::poll(KEY_PAUSE).and_then(|is_there| is_there.then(event::read).transpose());
        let told = match read {
            Ok(None) => continue,
            Ok(Some(Input::Key(key))) if key.kind != KeyEventKind::Release => events.blocking_send(Ok(Event::Key(key))),
            Ok(Some(Input::Resize(..))) => events.blocking_send(Ok(Event::Resized)),
            Ok(Some(_)) => continue,
            Err(error) => {
                drop(events.blocking_send(Err(error)));
                return;
            }
        };
        if told.is_err() {
            return;
        }
    }
}
