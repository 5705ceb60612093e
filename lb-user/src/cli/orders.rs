//! Commands that change something in the running homing, and wait until it has.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::Socket;
use super::progress::{Left, Progress};
use crate::admin::client::{self, AskError};
use crate::admin::report::Status;
use crate::admin::server::Order;

/// Between looks at what is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Whom an order is for, and how its answer is wanted.
#[derive(Args)]
pub(super) struct To {
    #[command(flatten)]
    socket: Socket,
    /// As JSON, an object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct Drain {
    /// APP, or APP/N as `homing status` shows it.
    worker: String,
    /// Wait until nobody is connected any more, or timeouts.drain is over.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    to: To,
}

#[derive(Args)]
pub(super) struct Undrain {
    /// APP, or APP/N as `homing status` shows it.
    worker: String,
    #[command(flatten)]
    to: To,
}

#[derive(Args)]
pub(super) struct Scale {
    /// The app's name.
    app: String,
    /// N, or MIN..MAX.
    #[arg(value_name = "BOUNDS", value_parser = bounds)]
    bounds: (u32, u32),
    #[command(flatten)]
    to: To,
}

#[derive(Args)]
pub(super) struct Restart {
    /// The app's name.
    app: String,
    /// One worker after the other, instead of all at once.
    #[arg(long)]
    rolling: bool,
    #[command(flatten)]
    to: To,
}

#[derive(Subcommand)]
pub(super) enum Keys {
    /// Seal cookies with a fresh key from now on.
    ///
    /// The key before it stays good until the next rotation, and who comes with its cookie gets a new one: rotate twice
    /// only after those who shall stay have been here. Rotate twice at once if the key file was stolen.
    #[command(after_help = "Example:\n  homing keys rotate")]
    Rotate(To),
}

/// `N` or `MIN..MAX`.
fn bounds(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| text.parse::<u32>().map_err(|_| "give a number of workers, or MIN..MAX such as 1..8");
    match text.split_once("..") {
        Some((min, max)) => Ok((number(min)?, number(max)?)),
        None => number(text).map(|number| (number, number)).map_err(str::to_owned),
    }
}

/// Says who is still connected, and waits until nobody is if that is wanted.
pub(super) async fn drain(options: Drain) -> Result<(), AskError> {
    let Drain { worker: name, wait, to } = options;
    let (socket, mut progress) = give(to, &Order::Drain { worker: name.clone(), undo: false }).await?;
    loop {
        let left = Left::named(&client::get(&socket, "/v1/status").await?, &name);
        if left.draining == 0 || (left.connections == 0 && !wait) {
            progress.end("Nobody is connected there.", Some(&left));
            return Ok(());
        }
        if !wait {
            progress.end(&format!("{}; --wait waits for their end.", left.endings()), Some(&left));
            return Ok(());
        }
        progress.say(&left, &left.endings());
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

pub(super) async fn undrain(options: Undrain) -> Result<(), AskError> {
    give_alone(options.to, &Order::Drain { worker: options.worker, undo: true }).await
}

/// Says who is still connected to those who are no longer wanted.
pub(super) async fn scale(options: Scale) -> Result<(), AskError> {
    let Scale { app, bounds: (min, max), to } = options;
    let (socket, mut progress) = give(to, &Order::Scale { app: app.clone(), min, max }).await?;
    let left = Left::named(&client::get(&socket, "/v1/status").await?, &app);
    let said = if left.draining > 0 { format!("{}.", left.endings()) } else { String::new() };
    progress.end(&said, Some(&left));
    Ok(())
}

pub(super) async fn reload(to: To) -> Result<(), AskError> {
    give_alone(to, &Order::Reload).await
}

pub(super) async fn keys(command: Keys) -> Result<(), AskError> {
    let Keys::Rotate(to) = command;
    give_alone(to, &Order::RotateKeys).await
}

/// Gives the order and says what homing said; what comes of it is the caller's to follow.
async fn give(to: To, order: &Order) -> Result<(PathBuf, Progress<io::Stdout>), AskError> {
    let To { socket: Socket { control_socket: socket }, json } = to;
    let mut progress = Progress::new(json);
    progress.begin(&client::order(&socket, order).await?);
    Ok((socket, progress))
}

/// Gives an order that is carried out when homing answers.
async fn give_alone(to: To, order: &Order) -> Result<(), AskError> {
    let To { socket: Socket { control_socket: socket }, json } = to;
    Progress::new(json).end(&client::order(&socket, order).await?, None);
    Ok(())
}

/// Waits until every worker has its successor.
pub(super) async fn restart(options: Restart) -> Result<(), AskError> {
    let Restart { app: name, rolling, to } = options;
    let (socket, mut progress) = give(to, &Order::Restart { app: name.clone(), rolling }).await?;
    loop {
        let status: Status = client::get(&socket, "/v1/status").await?;
        let Some(app) = status.apps.into_iter().find(|app| app.name == name) else {
            progress.end(&format!("{name} is no longer configured."), None);
            return Ok(());
        };
        if let Some(reason) = app.restart_failed {
            return Err(AskError::Refused(format!(
                "the restart is stopped, the old workers go on: the new one {reason}"
            )));
        }
        let left = Left::of(&app.workers);
        if !app.restarting {
            let has = format!("{name} has new workers.");
            let said = if left.draining == 0 { has } else { format!("{has} Of the old ones: {}.", left.endings()) };
            progress.end(&said, Some(&left));
            return Ok(());
        }
        progress.say(&left, &left.changes());
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Drains and stops homing, and waits until it has.
pub(super) async fn stop(to: To, now: bool) -> Result<(), AskError> {
    let To { socket: Socket { control_socket: socket }, json } = to;
    client::post(&socket, if now { "/v1/stop?now=true" } else { "/v1/stop" }).await?;
    let mut progress = Progress::new(json);
    // homing closes its socket when it has ended.
    while let Ok(status) = client::get::<Status>(&socket, "/v1/status").await {
        let left = Left::of(status.apps.iter().flat_map(|app| &app.workers));
        let remedy = if now { "" } else { " (homing stop --now does not wait)" };
        progress.say(&left, &format!("draining: {}{remedy}", left.endings()));
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    progress.end("homing has stopped.", None);
    Ok(())
}
