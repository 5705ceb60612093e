//! Clients of both paths that take the sticky test again and again, except while they are asked to stay away.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use homing::demo::client::{Client, Dialect, Outcome};
use homing_tests::instance::wait_seeing;
use homing_tests::network::{SERVER_V4, client_v4};

use crate::PORTS;

/// Clients of each path.
pub const CLIENTS: u8 = 12;
/// Before a client comes back whose visit failed, or looks whether it may come.
const PAUSE: Duration = Duration::from_millis(20);

/// What a client saw, and when.
#[derive(Debug)]
pub struct Visit {
    /// Of its path, from 0 on.
    pub client: u8,
    pub app: usize,
    pub begun: Instant,
    pub ended: Instant,
    pub outcome: Outcome,
}

/// All clients.
#[derive(Default)]
pub struct Visitors {
    is_over: AtomicBool,
    stay_away: AtomicBool,
    /// Visits that have begun and not ended.
    visiting: AtomicUsize,
    /// Where clients are in the visit that they make, by number: requests of their session that passed.
    sessions: Mutex<HashMap<u8, u32>>,
    visits: Mutex<Vec<Visit>>,
}

impl Visitors {
    /// All of them, until it is over.
    pub async fn come(&self) {
        futures_util::future::join_all((0..2 * CLIENTS).map(|number| self.come_again_and_again(number))).await;
    }

    async fn come_again_and_again(&self, number: u8) {
        let (app, client) = (usize::from(number >= CLIENTS), number % CLIENTS);
        let asks = Client {
            target: SocketAddr::from((SERVER_V4, PORTS[app])),
            from: Some(address(app, client)),
            dialect: Dialect::Demo,
            cookies: app == 1,
        };
        while !self.is_over.load(Ordering::SeqCst) {
            // First, so that whoever sees nobody here knows that nobody comes.
            self.visiting.fetch_add(1, Ordering::SeqCst);
            let may_come = !self.stay_away.load(Ordering::SeqCst);
            let mut is_well = false;
            if may_come {
                let begun = Instant::now();
                let progress = |outcome: &Outcome| {
                    lock(&self.sessions).insert(number, outcome.ok);
                };
                let outcome = asks.sticky_test(progress).await;
                is_well = outcome.passed();
                lock(&self.sessions).remove(&number);
                lock(&self.visits).push(Visit { client, app, begun, ended: Instant::now(), outcome });
            }
            self.visiting.fetch_sub(1, Ordering::SeqCst);
            if !is_well {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Lets all come, and waits until each has a session that answers.
    pub fn let_come(&self) {
        self.stay_away.store(false, Ordering::SeqCst);
        wait_seeing("every client has a session", || {
            let sessions = lock(&self.sessions).values().filter(|&&ok| ok > 0).count();
            if sessions == usize::from(2 * CLIENTS) {
                return Ok(());
            }
            let failed =
                lock(&self.visits).iter().rfind(|visit| !visit.outcome.passed()).map(|visit| format!("{visit:?}"));
            Err(format!("{sessions} of {} have one; the last that failed: {failed:?}", 2 * CLIENTS))
        });
    }

    /// Lets nobody come any more, and waits until all have finished what they began: their visits since the last time.
    pub fn keep_away(&self) -> Vec<Visit> {
        self.stay_away.store(true, Ordering::SeqCst);
        wait_seeing("every client has gone", || match self.visiting.load(Ordering::SeqCst) {
            0 => Ok(()),
            still => Err(format!("{still} have not")),
        });
        std::mem::take(&mut *lock(&self.visits))
    }

    /// They end with the visits that they make.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
    }
}

/// Not a stranger's: the way back to these goes with the link. Clients of the cookies share one.
pub fn address(app: usize, client: u8) -> std::net::IpAddr {
    client_v4(if app == 0 { client + 1 } else { CLIENTS + 1 })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
