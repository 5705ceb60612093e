//! `soak`: very many sessions for a long time, over both paths, each with a message now and then and a new connection after some
//! minutes. What homing holds must not grow, nobody may be cut off, and how long messages take is told.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use homing_tests::instance::{Homing, free_address};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::http::{MESSAGE, websocket_from};
use crate::peers::memory_bytes;
use crate::report::{Bar, Case};
use crate::worker::raise_descriptors;

/// From one message of a session to its next.
const PAUSE: Duration = Duration::from_secs(10);
/// After so many a session ends, and another begins in its place: not all at once.
const MESSAGES: usize = 12;
/// From one look at homing to the next.
const LOOK: Duration = Duration::from_secs(5);
/// Sessions that are being opened at once, at the beginning.
const OPENING: usize = 50;
/// Descriptors of a process for other things than sessions.
const SPARE: usize = 1_000;
/// Addresses that clients come from: 127.0.2.1, .2, …
const SOURCES: usize = 250;
const PATHS: [&str; 2] = ["kernel path", "HTTP path"];

/// What the sessions of one path saw.
#[derive(Default)]
struct Seen {
    waits: Mutex<Vec<Duration>>,
    broken: AtomicUsize,
    opened: AtomicUsize,
}

struct Look {
    memory_bytes: u64,
    descriptors: usize,
}

pub fn run(sessions: usize, length: Duration) -> anyhow::Result<Vec<Case>> {
    let limit = raise_descriptors();
    // This process has one for each, homing two for each of the half that it forwards.
    ensure!(
        sessions + SPARE <= limit,
        "a process may have {limit} descriptors here, and {sessions} sessions take {}: raise the limit (ulimit -Hn) or \
         ask for fewer --sessions",
        sessions + SPARE
    );
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(soak(sessions, length))
}

async fn soak(sessions: usize, length: Duration) -> anyhow::Result<Vec<Case>> {
    let targets = [free_address(), free_address()];
    let homing = start(targets)?;
    let seen: &'static [Seen; 2] = Box::leak(Box::default());
    let mut everybody = JoinSet::new();
    let begin = Instant::now();
    let opening: &'static tokio::sync::Semaphore = Box::leak(Box::new(tokio::sync::Semaphore::new(OPENING)));
    for number in 0..sessions {
        let path = number % PATHS.len();
        everybody.spawn(again_and_again(targets[path], number, opening, &seen[path]));
    }
    while seen.iter().map(|seen| seen.opened.load(Ordering::Relaxed)).sum::<usize>() < sessions {
        ensure!(begin.elapsed() < length.max(Duration::from_secs(120)), "the sessions could not be opened");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("{sessions} sessions are open after {:.0} s", begin.elapsed().as_secs_f64());
    let begin = Instant::now();
    let mut looks = Vec::new();
    while begin.elapsed() < length {
        tokio::time::sleep(LOOK).await;
        let look = look(homing.pid())?;
        let [kernel, http] = seen.each_ref().map(|seen| seen.broken.load(Ordering::Relaxed));
        println!(
            "{:5.0} s: {:.1} MB, {} descriptors; broken: {kernel} on the kernel path, {http} on the HTTP path",
            begin.elapsed().as_secs_f64(),
            look.memory_bytes as f64 / 1e6,
            look.descriptors
        );
        looks.push(look);
    }
    everybody.shutdown().await;
    cases(sessions, &looks, seen)
}

fn cases(sessions: usize, looks: &[Look], seen: &[Seen; 2]) -> anyhow::Result<Vec<Case>> {
    // What grows once, tables, pools and the allocator, has when everybody has come anew, and come again.
    let lifetimes = (2 * MESSAGES as u32 * PAUSE).div_duration_f64(LOOK) as usize;
    let steady = looks.get(lifetimes.max(looks.len() / 5)..).unwrap_or_default();
    ensure!(steady.len() >= 8, "too short to say whether anything grows: give it --minutes 6 or more");
    let (early, late) = (&steady[..steady.len() / 4], &steady[steady.len() * 3 / 4..]);
    let of = |looks: &[Look], value: fn(&Look) -> f64| looks.iter().map(value).collect::<Vec<_>>();
    let grows = |what: &str, unit, value: fn(&Look) -> f64| {
        Case::new(what, &of(late, value), unit, "after warming up", &of(early, value)).with_bar(Some(Bar::Ratio(1.01)))
    };
    let mut cases = vec![
        grows(&format!("memory of homing, {sessions} sessions"), "MB", |look| look.memory_bytes as f64 / 1e6),
        grows("descriptors of homing", "", |look| look.descriptors as f64),
    ];
    let waits = seen.each_ref().map(|seen| {
        let mut waits = std::mem::take(&mut *seen.waits.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        waits.sort_unstable();
        waits
    });
    for part in [50, 99] {
        let [kernel, http] = waits.each_ref().map(|waits| {
            let wait = waits.get(waits.len().saturating_sub(1) * part / 100);
            [wait.map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e3)]
        });
        cases.push(Case::new(&format!("message there and back p{part}, HTTP path"), &http, "ms", PATHS[0], &kernel));
    }
    let kept = seen.each_ref().map(|seen| {
        let (opened, broken) = (seen.opened.load(Ordering::Relaxed), seen.broken.load(Ordering::Relaxed));
        [100.0 * opened.saturating_sub(broken) as f64 / opened as f64]
    });
    for (path, kept) in PATHS.iter().zip(&kept) {
        let bar = Some(Bar::RatioAtLeast(1.0));
        cases.push(Case::new(&format!("sessions kept, {path}"), kept, "%", "all of them", &[100.0]).with_bar(bar));
    }
    Ok(cases)
}

/// A homing with two workers by address and two by cookie.
fn start(targets: [SocketAddr; 2]) -> anyhow::Result<Homing> {
    let bench = std::env::current_exe()?;
    let app = |name: &str, listen: SocketAddr, affinity: &str| {
        format!(
            "[[app]]\nname = \"{name}\"\nlisten = [\"{listen}\"]\naffinity = \"{affinity}\"\n\
             command = [{bench:?}, \"worker\", \"--listen\", \"127.0.0.1:{{port}}\"]\n\
             [app.workers]\nmin = 2\nmax = 2\nmax_connections = 100000\n[app.timeouts]\ndrain = \"0s\"\n"
        )
    };
    let homing = Homing::start(&(app("addresses", targets[0], "ip") + &app("cookies", targets[1], "cookie")));
    (0..2).for_each(|app| drop(homing.wait_for_workers(app, 2)));
    let path = homing.status()["kernel_path"].clone();
    ensure!(path["active"] == true, "no kernel path: {}", path["reason"]);
    Ok(homing)
}

fn look(pid: u32) -> anyhow::Result<Look> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok(Look { memory_bytes: memory_bytes(pid)?, descriptors })
}

async fn again_and_again(target: SocketAddr, number: usize, opening: &tokio::sync::Semaphore, seen: &Seen) {
    // As if it had been there for a while already.
    let mut messages = number % MESSAGES;
    loop {
        let socket = {
            let Ok(_permit) = opening.acquire().await else { return };
            websocket_from(target, (number % SOURCES) as u8 + 1).await
        };
        let result = match socket {
            Ok(socket) => {
                seen.opened.fetch_add(1, Ordering::Relaxed);
                talk(socket, number, &mut messages, seen).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            // The first few say enough.
            if seen.broken.fetch_add(1, Ordering::Relaxed) < 10 {
                eprintln!("a session with {target} broke: {error:#}");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        messages = 0;
    }
}

async fn talk(mut socket: TcpStream, number: usize, messages: &mut usize, seen: &Seen) -> anyhow::Result<()> {
    let mut due = Instant::now() + PAUSE * (number % 1_000) as u32 / 1_000;
    while *messages < MESSAGES {
        tokio::time::sleep_until(due.into()).await;
        let mut message = MESSAGE;
        socket.write_all(&message).await.context("sending")?;
        socket.read_exact(&mut message).await.context("waiting for the echo")?;
        // From when it was due: a pause is felt by all that were due in it.
        let wait = due.elapsed();
        seen.waits.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(wait);
        due += PAUSE;
        *messages += 1;
    }
    Ok(())
}
