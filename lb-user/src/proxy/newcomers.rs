//! Browsers that have no cookie yet: which of their first requests are one browser's.
//!
//! A browser that opens ten tabs at once sends ten requests before it has a cookie. If they went to ten workers, the
//! cookie of the last answer would take the users of the nine other tabs away from their worker. So who comes without a
//! cookie while a page is being made for the same address, the same kind of browser and at most as many connections as
//! one browser opens, gets the worker that makes it. Several people behind one address may so share a worker: at most
//! [`PARTY_CONNECTIONS_MAX`] of them, and each has a session of their own. What comes through a proxy has no connection of
//! its own: there pages are counted, [`PARTY_PAGES_UNSEEN_MAX`] at most.
//!
//! Pure: time comes in as an argument.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use http::header::{ACCEPT_LANGUAGE, HeaderMap, USER_AGENT};
use lb_common::abi::{BackendId, BindingKey};

use super::limits::{
    PARTIES_MAX, PARTIES_OF_A_BROWSER_MAX, PARTIES_SWEEP, PARTY_CONNECTIONS_MAX, PARTY_FOLLOWED, PARTY_LINGER,
    PARTY_PAGES_MAX, PARTY_PAGES_UNSEEN_MAX,
};

/// What a request shows of the browser that sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Looks {
    browser: u64,
    /// One browser's, whatever else. `None`: it came through a proxy, of whose connections nothing follows.
    connection: Option<u64>,
}

/// Hashes what browsers show of themselves.
#[derive(Default)]
pub struct Fingerprints(RandomState);

impl Fingerprints {
    /// `None` for what is no browser. `named`: the process that its outdated cookie names.
    pub fn of(
        &self,
        client: &BindingKey,
        headers: &HeaderMap,
        named: Option<u64>,
        connection: Option<u64>,
    ) -> Option<Looks> {
        let shown = headers.get(USER_AGENT)?;
        let client = (client.app, client.client.high, client.client.low);
        let browser = self.0.hash_one((client, shown, headers.get(ACCEPT_LANGUAGE), named));
        Some(Looks { browser, connection })
    }
}

/// Requests without a cookie that are taken for one browser's.
struct Party {
    backend: BackendId,
    /// Those that have asked for a page.
    connections: Vec<u64>,
    pages: u32,
    /// Pages that are being made.
    awaited: u32,
    /// When a page was asked for or answered, or something followed it.
    last: Instant,
    last_page: Instant,
}

impl Party {
    fn is_forgotten(&self, now: Instant) -> bool {
        self.awaited == 0 && now.duration_since(self.last) > PARTY_FOLLOWED
    }

    /// Whether one more page may be the same browser's.
    fn takes(&self, looks: Looks, now: Instant) -> bool {
        let is_warm = self.awaited > 0 || now.duration_since(self.last_page) <= PARTY_LINGER;
        let fits = match looks.connection {
            Some(_) => {
                self.pages < PARTY_PAGES_MAX && (self.has(looks) || self.connections.len() < PARTY_CONNECTIONS_MAX)
            }
            None => self.pages < PARTY_PAGES_UNSEEN_MAX,
        };
        is_warm && fits
    }

    /// Whether something else came on the same connection.
    fn has(&self, looks: Looks) -> bool {
        looks.connection.is_some_and(|connection| self.connections.contains(&connection))
    }
}

/// All parties, by browser.
#[derive(Default)]
pub struct Newcomers {
    parties: HashMap<u64, Vec<Party>>,
    /// When those that are forgotten were last taken out because there were too many.
    swept: Option<Instant>,
}

impl Newcomers {
    /// The worker that makes another page for this browser. One more page is awaited then.
    pub fn join(&mut self, looks: Looks, now: Instant, takes_clients: impl Fn(BackendId) -> bool) -> Option<BackendId> {
        let parties = self.parties.get_mut(&looks.browser)?;
        parties.retain(|party| !party.is_forgotten(now));
        let open = |party: &&mut Party| party.takes(looks, now) && takes_clients(party.backend);
        // Its own before any other, the newest of those.
        let party = parties.iter_mut().rev().filter(open).max_by_key(|party| party.has(looks))?;
        if !party.has(looks) {
            party.connections.extend(looks.connection);
        }
        party.pages += 1;
        party.awaited += 1;
        (party.last, party.last_page) = (now, now);
        Some(party.backend)
    }

    /// The worker that made the page which this request, for something else than a page, belongs to: browsers that
    /// keep no cookies come without one for ever.
    pub fn follow(&mut self, looks: Looks, now: Instant) -> Option<BackendId> {
        let parties = self.parties.get_mut(&looks.browser)?;
        let known = parties.iter_mut().filter(|party| !party.is_forgotten(now));
        let party = known.max_by_key(|party| (party.has(looks), party.last_page))?;
        party.last = now;
        Some(party.backend)
    }

    /// A page is awaited from a worker that nothing else of this browser goes to.
    pub fn found(&mut self, looks: Looks, backend: BackendId, now: Instant) {
        if self.parties.len() >= PARTIES_MAX {
            self.sweep(now);
        }
        let has_room = self.parties.len() < PARTIES_MAX;
        let party = Party {
            backend,
            connections: looks.connection.into_iter().collect(),
            pages: 1,
            awaited: 1,
            last: now,
            last_page: now,
        };
        match self.parties.entry(looks.browser) {
            Entry::Occupied(mut parties) if parties.get().len() < PARTIES_OF_A_BROWSER_MAX => {
                parties.get_mut().push(party);
            }
            Entry::Vacant(none) if has_room => drop(none.insert(vec![party])),
            _ => {}
        }
    }

    /// Takes out those that are forgotten, not more often than it pays: others wait meanwhile.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.duration_since(swept) < PARTIES_SWEEP) {
            return;
        }
        self.swept = Some(now);
        self.parties.retain(|_, parties| parties.iter().any(|party| !party.is_forgotten(now)));
    }

    /// A page that was awaited has been answered, or given up.
    pub fn answered(&mut self, looks: Looks, backend: BackendId, now: Instant) {
        let parties = self.parties.get_mut(&looks.browser).into_iter().flatten();
        let mut awaiting = parties.filter(|party| party.backend == backend && party.awaited > 0);
        if let Some(party) = awaiting.next() {
            party.awaited -= 1;
            (party.last, party.last_page) = (now, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::addr::Addr;
    use std::time::Duration;

    const HOME: BackendId = BackendId::new(1, 1);
    const OTHER: BackendId = BackendId::new(2, 1);

    fn looks(connection: u64) -> Looks {
        Looks { browser: 7, connection: Some(connection) }
    }

    fn anybody(_: BackendId) -> bool {
        true
    }

    #[test]
    fn tabs_that_open_while_a_page_is_made_join_it_however_many_they_are() {
        let (mut newcomers, now) = (Newcomers::default(), Instant::now());
        newcomers.found(looks(0), HOME, now);
        for connection in 1..6 {
            assert_eq!(newcomers.join(looks(connection), now, anybody), Some(HOME));
        }
        for connection in 0..6 {
            newcomers.answered(looks(connection), HOME, now);
            let later = now + PARTY_LINGER;
            assert_eq!(
                newcomers.join(looks(connection), later, anybody),
                Some(HOME),
                "the next tab, on its connection"
            );
        }
    }

    #[test]
    fn people_behind_one_address_are_not_piled_onto_one_worker() {
        let (mut newcomers, now) = (Newcomers::default(), Instant::now());
        newcomers.found(looks(0), HOME, now);
        let joined = (1..50).filter(|&connection| newcomers.join(looks(connection), now, anybody).is_some()).count();
        assert_eq!(joined, PARTY_CONNECTIONS_MAX - 1, "no browser opens more connections");
        assert_eq!(newcomers.join(Looks { browser: 8, ..looks(0) }, now, anybody), None, "another browser");
        let mut one_proxy = Newcomers::default();
        one_proxy.found(looks(0), HOME, now);
        let joined = (1..200).filter(|_| one_proxy.join(looks(0), now, anybody).is_some()).count();
        assert_eq!(joined, PARTY_PAGES_MAX as usize - 1, "nor so many tabs");
    }

    /// Every request had a connection of its own there, and the seventh of ten tabs another worker.
    #[test]
    fn ten_tabs_through_a_proxy_get_one_worker_and_a_whole_school_does_not() {
        let (mut newcomers, now) = (Newcomers::default(), Instant::now());
        let unseen = Looks { browser: 7, connection: None };
        newcomers.found(unseen, HOME, now);
        let joined = (1..50).filter(|_| newcomers.join(unseen, now, anybody).is_some()).count();
        assert!((9..16).contains(&joined), "{joined}");
        assert_eq!(newcomers.follow(unseen, now), Some(HOME));
    }

    #[test]
    fn who_comes_after_the_page_was_answered_is_somebody_else() {
        let (mut newcomers, now) = (Newcomers::default(), Instant::now());
        newcomers.found(looks(0), HOME, now);
        let slow = now + Duration::from_secs(30);
        assert_eq!(newcomers.join(looks(1), slow, anybody), Some(HOME), "a page may take its time");
        newcomers.answered(looks(0), HOME, slow);
        newcomers.answered(looks(1), HOME, slow);
        assert_eq!(newcomers.join(looks(2), slow + PARTY_LINGER * 2, anybody), None);
    }

    #[test]
    fn nobody_joins_a_worker_that_takes_no_clients() {
        let (mut newcomers, now) = (Newcomers::default(), Instant::now());
        newcomers.found(looks(0), HOME, now);
        assert_eq!(newcomers.join(looks(1), now, |backend| backend != HOME), None);
        newcomers.found(looks(1), OTHER, now);
        assert_eq!(newcomers.join(looks(2), now, |backend| backend != HOME), Some(OTHER));
        assert_eq!(newcomers.join(looks(0), now, anybody), Some(HOME), "its own connection's");
    }

    #[test]
    fn what_a_page_needs_follows_it_where_there_are_no_cookies() {
        let (mut newcomers, now) = (Newcomers::default(), Instant::now());
        assert_eq!(newcomers.follow(looks(0), now), None);
        newcomers.found(looks(0), HOME, now);
        newcomers.answered(looks(0), HOME, now);
        newcomers.found(looks(1), OTHER, now + Duration::from_secs(5));
        let mut at = now + Duration::from_secs(5);
        for _ in 0..10 {
            at += PARTY_FOLLOWED / 2;
            assert_eq!(newcomers.follow(looks(0), at), Some(HOME), "by its connection, for as long as it goes on");
        }
        assert_eq!(newcomers.follow(looks(9), now + Duration::from_secs(6)), Some(OTHER), "else the newest page");
    }

    #[test]
    fn what_is_no_browser_is_not_taken_for_one() {
        let fingerprints = Fingerprints::default();
        let client = BindingKey { client: Addr::v4([192, 0, 2, 1]), app: 0, reserved: 0 };
        let with = |agent: &'static str| HeaderMap::from_iter([(USER_AGENT, agent.parse().expect("a header"))]);
        assert_eq!(fingerprints.of(&client, &HeaderMap::new(), None, Some(1)), None);
        let one = fingerprints.of(&client, &with("a"), None, Some(1));
        assert_eq!(one, fingerprints.of(&client, &with("a"), None, Some(1)));
        assert_ne!(one, fingerprints.of(&client, &with("b"), None, Some(1)));
        assert_ne!(one, fingerprints.of(&client, &with("a"), Some(3), Some(1)));
        let next_door = BindingKey { client: Addr::v4([192, 0, 2, 2]), ..client };
        assert_ne!(one, fingerprints.of(&next_door, &with("a"), None, Some(1)));
    }

    #[test]
    fn the_table_is_bounded_and_forgets() {
        let (mut newcomers, now) = (Newcomers::default(), Instant::now());
        let nth = |browser| Looks { browser, connection: Some(browser) };
        for browser in 0..PARTIES_MAX as u64 + 10 {
            newcomers.found(nth(browser), HOME, now);
            newcomers.answered(nth(browser), HOME, now);
        }
        assert_eq!(newcomers.parties.len(), PARTIES_MAX);
        newcomers.found(nth(u64::MAX), HOME, now + PARTY_FOLLOWED * 2);
        assert_eq!(newcomers.parties.len(), 1);
        for _ in 0..PARTIES_OF_A_BROWSER_MAX * 2 {
            newcomers.found(looks(0), HOME, now);
        }
        assert_eq!(newcomers.parties[&7].len(), PARTIES_OF_A_BROWSER_MAX);
    }
}
