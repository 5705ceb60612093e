//! A client connection: what all requests and tunnels on it share, and which apps count it as theirs.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ipnet::IpNet;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::counters::Counter;
use super::crowd::{self, InCrowd};
use super::headers::Client;
use super::limits::CLIENTS_OF_A_PROXY_MAX;
use super::{Inner, Shutdown};
use crate::routing::Door;

pub struct Connection {
    pub proxy: Arc<Inner>,
    /// Its own among all.
    pub number: u64,
    pub client: Client,
    /// The client's side, as far as the connection itself tells.
    pub source: SocketAddr,
    /// It is a trusted proxy, which says with each request whom it speaks for; these are all that are trusted.
    pub speaks_for_others: Option<Arc<[IpNet]>>,
    /// Its listen address, as it is configured.
    pub address: SocketAddr,
    /// The listener's side.
    pub local: SocketAddr,
    pub shutdown: watch::Receiver<Shutdown>,
    /// As it was when the client came.
    pub entered: Arc<Door>,
    /// The app of most connections' only requests.
    pub first: OnceLock<Member>,
    pub others: Mutex<VecDeque<Member>>,
    /// Counts against the listener's bound; all of them back means that the listener is done.
    pub _permit: OwnedSemaphorePermit,
}

/// One of an app's connections, of this client, for as long as this lives.
pub struct Member {
    app: u32,
    address: IpAddr,
    _open: Open,
    _in_crowd: Option<InCrowd>,
}

impl Connection {
    /// What is behind the address now. One that was closed leads where it led, for as long as somebody is here.
    pub fn door(&self) -> Arc<Door> {
        let snapshot = self.proxy.routing.snapshots.borrow();
        Arc::clone(snapshot.doors.get(&self.address).unwrap_or(&self.entered))
    }

    /// Its number, if all that comes on it is one browser's.
    pub fn number(&self) -> Option<u64> {
        self.speaks_for_others.is_none().then_some(self.number)
    }

    /// Counts the connection as the app's, too, and as this client's there, unless it is already.
    ///
    /// # Errors
    /// Which of the app's lists, rates or bounds is against it, counted.
    pub fn join(&self, app: u32, door: &Door, client: &Client) -> Result<(), Counter> {
        let is_it = |member: &Member| member.app == app && member.address == client.address;
        if self.first.get().is_some_and(is_it) {
            return Ok(());
        }
        // A panic cannot leave the list half-changed.
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if self.first.get().is_some_and(is_it) || others.iter().any(is_it) {
            return Ok(());
        }
        let member = self.member(app, door, client.address)?;
        if let Err(member) = self.first.set(member) {
            if self.speaks_for_others.is_some() && others.len() == CLIENTS_OF_A_PROXY_MAX {
                others.pop_front();
            }
            others.push_back(member);
        }
        Ok(())
    }

    fn member(&self, app: u32, door: &Door, address: IpAddr) -> Result<Member, Counter> {
        let proxy = &self.proxy;
        // The kernel saw a proxy's address, not whom it speaks for.
        if (door.guards || door.proxy_protocol || self.speaks_for_others.is_some())
            && let Some(route) = proxy.route(app)
            && let Some(protect) = &route.protect
            && let Some(refusal) = proxy.pace.refusal(&route, protect, address)
        {
            proxy.counters.add(refusal);
            return Err(refusal);
        }
        let most = proxy.route(app).and_then(|route| route.http.max_connections);
        let Some(open) = proxy.connections.open(app, most) else {
            proxy.counters.add(Counter::RefusedConnections);
            return Err(Counter::RefusedConnections);
        };
        Ok(Member { app, address, _open: open, _in_crowd: crowd::join(proxy, app, address) })
    }
}

/// How many client connections each app has.
#[derive(Default)]
pub struct OpenConnections(Mutex<HashMap<u32, Arc<AtomicUsize>>>);

impl OpenConnections {
    pub fn of(&self, app: u32) -> usize {
        self.gauge(app).load(Ordering::Relaxed)
    }

    fn gauge(&self, app: u32) -> Arc<AtomicUsize> {
        // A panic cannot leave the map half-changed.
        let mut gauges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(gauges.entry(app).or_default())
    }

    /// Counts one more until the value is dropped, unless there are `most` already.
    fn open(&self, app: u32, most: Option<u32>) -> Option<Open> {
        let open = Open(self.gauge(app));
        let before = open.0.fetch_add(1, Ordering::Relaxed);
        most.is_none_or(|most| before < most as usize).then_some(open)
    }
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
