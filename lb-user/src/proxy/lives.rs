//! Users over random lives of their workers: whoever has the cookie of a process that lives reaches that one, whatever else happens.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use http::header::{COOKIE, HeaderMap, HeaderValue};
use proptest::prelude::*;
use tokio::sync::{mpsc, watch};

use super::cookie::{self, Presented};
use super::place::{Rule, Visitor};
use super::testing::{route, worker_at};
use super::{CookieKeys, KEY_FILE, Proxy};
use crate::bindings::MemoryBindings;
use crate::config::Affinity;
use crate::routing::{AppRoute, RoutingHandle, WorkerRoute};

const WORKERS: u32 = 4;
const USERS: usize = 12;
/// Nothing is sent.
const NOBODY: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));

#[derive(Clone, Debug)]
enum Event {
    /// Without a successor, for now.
    Dies(u32),
    /// With another process under its number, also while it lives.
    Starts(u32),
    Drains(u32, bool),
    /// Has no room for new clients, or has it again.
    Fills(u32, bool),
    RotatesKeys,
    Visits(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let number = || 0..WORKERS;
    prop_oneof![
        2 => number().prop_map(Event::Dies),
        2 => number().prop_map(Event::Starts),
        2 => (number(), any::<bool>()).prop_map(|(number, is)| Event::Drains(number, is)),
        2 => (number(), any::<bool>()).prop_map(|(number, is)| Event::Fills(number, is)),
        1 => Just(Event::RotatesKeys),
        12 => (0..USERS).prop_map(Event::Visits),
    ]
}

/// What a user's browser has, and what is true of it.
struct Held {
    cookie: HeaderValue,
    incarnation: u64,
    /// Rotations since it was made: its key is forgotten with the second.
    rotations: u32,
}

struct House {
    proxy: Proxy,
    workers: Vec<WorkerRoute>,
    users: [Option<Held>; USERS],
    next_incarnation: u64,
    keys: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let keys = tempfile::tempdir().unwrap();
        let path = keys.path().join(KEY_FILE);
        std::fs::write(&path, [7; 32]).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let (_, snapshots) = watch::channel(Arc::default());
        let (notices, _) = mpsc::channel(1);
        let routing = RoutingHandle { snapshots, notices, bindings: Arc::new(MemoryBindings::new()) };
        let proxy = Proxy::new(routing, CookieKeys::load_or_create(keys.path()).unwrap(), None, None).unwrap();
        let workers = (0..WORKERS).map(|number| worker_at(number, NOBODY)).collect();
        Self { proxy, workers, users: [const { None }; USERS], next_incarnation: 5_000, keys }
    }

    fn worker(&mut self, number: u32) -> Option<&mut WorkerRoute> {
        self.workers.iter_mut().find(|worker| worker.number == number)
    }

    fn happens(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match *event {
            Event::Dies(number) => self.workers.retain(|worker| worker.number != number),
            Event::Starts(number) => {
                self.workers.retain(|worker| worker.number != number);
                self.next_incarnation += 1;
                let incarnation = self.next_incarnation;
                self.workers.push(WorkerRoute { incarnation, ..worker_at(number, NOBODY) });
            }
            Event::Drains(number, drains) => {
                if let Some(worker) = self.worker(number) {
                    worker.draining = drains;
                }
            }
            Event::Fills(number, fills) => {
                if let Some(worker) = self.worker(number) {
                    worker.room = if fills { 0 } else { u32::MAX };
                }
            }
            Event::RotatesKeys => {
                self.proxy.0.keys.rotate(self.keys.path()).unwrap();
                self.users.iter_mut().flatten().for_each(|held| held.rotations += 1);
            }
            Event::Visits(user) => self.visits(user)?,
        }
        Ok(())
    }

    fn visits(&mut self, user: usize) -> Result<(), TestCaseError> {
        let app: AppRoute = route(Affinity::Cookie, self.workers.clone());
        let held = self.users[user].take();
        let mut headers = HeaderMap::new();
        headers.extend(held.iter().map(|held| (COOKIE, held.cookie.clone())));
        let inner = &self.proxy.0;
        let presented = cookie::read(&inner.keys, &app.cookie.name, &app.name, &headers);
        let known = held.as_ref().filter(|held| held.rotations < 2);
        prop_assert_eq!(presented.incarnation(), known.map(|held| held.incarnation));
        prop_assert_eq!(matches!(presented, Presented::Aging(_)), known.is_some_and(|held| held.rotations == 1));
        let address = [192, 0, 2, user as u8].into();
        let connection = Some(user as u64);
        let visitor =
            Visitor { app: 0, address, is_secure: false, connection, presented, navigates: false, session: None };
        let place = inner.place(&app, visitor, &headers, None);
        let home = known.and_then(|held| self.workers.iter().find(|worker| worker.incarnation == held.incarnation));
        let Some(place) = place else {
            prop_assert!(home.is_none(), "refused although its process lives");
            prop_assert!(!self.workers.iter().any(WorkerRoute::takes_new_clients), "refused although one has room");
            self.users[user] = held;
            return Ok(());
        };
        match home {
            Some(home) => {
                prop_assert_eq!(place.worker.incarnation, home.incarnation, "moved although its process lives");
                prop_assert_eq!(place.rule, Rule::CookieKept);
            }
            None => {
                let rule = if known.is_some() { Rule::CookieRebound } else { Rule::CookieNew };
                prop_assert_eq!(place.rule, rule);
                prop_assert!(place.worker.takes_new_clients());
            }
        }
        let needs_one = home.is_none() || matches!(presented, Presented::Aging(_));
        prop_assert_eq!(place.set_cookie.is_some(), needs_one, "once, when it has changed");
        self.users[user] = match place.set_cookie {
            Some(set) => {
                let cookie = set.to_str().unwrap().split(';').next().unwrap().parse().unwrap();
                Some(Held { cookie, incarnation: place.worker.incarnation, rotations: 0 })
            }
            None => held,
        };
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_live_cookie_always_reaches_its_own_process(events in prop::collection::vec(event(), 1..150)) {
        let mut house = House::new();
        for event in &events {
            house.happens(event)?;
        }
    }
}
