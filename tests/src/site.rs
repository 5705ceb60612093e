//! A homing with four workers of the demo app, in a network of its own with clients that have addresses of their own.

use std::net::{IpAddr, SocketAddr};

use crate::instance::{Homing, demo_app};
use crate::network::{Network, SERVER_V4, SERVER_V6, client_v4};
use crate::session::{Client, Session};

/// Clients of a network.
pub const CLIENTS: u8 = 16;
pub const PORT: u16 = 8080;

/// A network with a homing in it.
pub struct Site {
    // In this order: homing ends before its namespace.
    pub homing: Homing,
    pub network: Network,
}

impl Site {
    /// Four workers of the demo app that listen on `host`; `more` are further lines of its `[[app]]`.
    pub fn start(host: &str, more: &str) -> Self {
        let site = Self::with(&demo_app("demo", &[v4(), v6()], host, 4, more));
        site.homing.wait_for_workers(0, 4);
        site
    }

    /// With this `[[app]]`.
    pub fn with(apps: &str) -> Self {
        Self::configured("", apps)
    }

    /// With these lines of `[homing]`, too.
    pub fn configured(settings: &str, apps: &str) -> Self {
        let network = Network::new(CLIENTS);
        let wrapper = network.server.wrapper();
        let homing = Homing::start_under(&wrapper.each_ref().map(String::as_str), settings, apps);
        Self { homing, network }
    }

    pub fn client(&self, from: IpAddr) -> Client<'_> {
        let target = if from.is_ipv4() { v4() } else { v6() };
        Client { namespace: Some(&self.network.clients), from, target }
    }

    /// A session of every IPv4 client.
    pub fn sessions(&self) -> Vec<Session<'_>> {
        (1..=CLIENTS).map(|number| self.client(client_v4(number)).open()).collect()
    }
}

/// Where IPv4 clients connect to.
pub fn v4() -> SocketAddr {
    (SERVER_V4, PORT).into()
}

/// Where IPv6 clients connect to.
pub fn v6() -> SocketAddr {
    (SERVER_V6, PORT).into()
}

/// The process that holds the session.
pub fn pid_of(session: &Session<'_>) -> i32 {
    i32::try_from(session.hello.pid).expect("process ids are small")
}

/// Alive, and further connections reach its process.
pub fn assert_kept(session: &mut Session<'_>) {
    assert!(session.is_alive(), "the WebSocket of {:?} broke", session.hello);
    let answer = session.check().expect("the service answers");
    assert_eq!(answer.status, 200, "a new connection of {:?} reached another process: {answer:?}", session.hello);
}
