//! One `[[app]]`, and what must hold between apps.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::User;

use super::backends;
use super::command;
use super::cookie;
use super::entrance;
use super::http;
use super::isolation;
use super::keys;
use super::listen::{self, Taken};
use super::protect;
use super::reader::{Given, Table, shown};
use super::route;
use super::tls;
use super::value;
use crate::config::{Affinity, App, Client, Health, Homing, SendProxy, Timeouts, Workers};

const WORKERS_MAX: u32 = 1024;
/// As shinyapps.io has them.
const DEFAULT_WORKERS: Workers = Workers { min: 1, max: 4, max_connections: 50, load_factor: 0.05 };
const CONNECTIONS_MAX: u32 = 1_000_000;

const SECOND: Duration = Duration::from_secs(1);
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const START_MIN: Duration = Duration::from_millis(100);
const DRAIN_MAX: Duration = DAY.saturating_mul(7);
const STOP_MAX: Duration = Duration::from_secs(60 * 60);
const AFFINITY_MAX: Duration = DAY.saturating_mul(30);
const DEFAULT_TIMEOUTS: Timeouts = Timeouts {
    start: Duration::from_secs(60),
    idle: Some(Duration::from_secs(15 * 60)),
    drain: Duration::from_secs(10 * 60),
    stop: Duration::from_secs(5),
    affinity: Duration::from_secs(3 * 60 * 60),
};
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
const DEFAULT_CLIENT: Client = Client { ipv4: 32, ipv6: 64, auto_promote: 16 };
const AUTO_PROMOTE_MAX: u32 = 65_535;

/// The apps read so far, and what they have taken.
pub(super) struct Apps<'b> {
    base: &'b Path,
    /// Absent where it is given and wrong.
    run_dir: Option<PathBuf>,
    /// Nobody's address may be believed.
    trusts_nobody: bool,
    apps: Vec<App>,
    names: Vec<String>,
    taken: Vec<Taken>,
}

impl<'b> Apps<'b> {
    /// `homing`: absent where something in it is wrong.
    pub(super) fn new(base: &'b Path, homing: Option<&Homing>) -> Self {
        let run_dir = homing.map(|homing| homing.run_dir.clone());
        let trusts_nobody = homing.is_some_and(|homing| homing.trusted_proxies.is_empty());
        Apps { base, run_dir, trusts_nobody, apps: Vec::new(), names: Vec::new(), taken: Vec::new() }
    }

    pub(super) fn finish(self) -> Vec<App> {
        self.apps
    }

    /// Reads one more. Wrong values are complained of and replaced by defaults, so that everything else is seen too.
    pub(super) fn read(&mut self, table: &Table<'_>) {
        table.know(keys::APP);
        let name = self.name(table);
        let listen = self.listen(table, &name);
        let route = route::route(table);
        let listen_udp = listen_udp(table);
        let directory = directory(table, self.base);
        let env = table.table("env").map(|table| command::env(&table)).unwrap_or_default();
        let command = command::command(table, directory.as_deref(), &env);
        let affinity = affinity(table);
        let workers = table.table("workers").map_or(DEFAULT_WORKERS, |table| workers(&table));
        let mut app = App {
            backends: backends::backends(table, &listen, &listen_udp, affinity),
            listen: listen.iter().map(|given| given.value).collect(),
            listen_udp,
            shares: false,
            tls: tls::tls(table, self.base),
            proxy_protocol: self.proxy_protocol(table),
            h2c: tls::h2c(table),
            send_proxy: send_proxy(table),
            affinity,
            workers: if table.has("command") { workers } else { Workers { min: 0, max: 0, ..workers } },
            command,
            listens_on: entrance::listens_on(table),
            directory: directory.unwrap_or_else(|| self.base.to_owned()),
            user: table.parsed("user", |name| value::account(name, "user", User::from_name)).map(|given| given.value),
            env,
            isolation: isolation::isolation(table),
            timeouts: table.table("timeouts").map_or(DEFAULT_TIMEOUTS, |table| timeouts(&table)),
            health: health(table),
            client: table.table("client").map_or(DEFAULT_CLIENT, |table| client(&table)),
            protect: protect::protect(table),
            http: http::http(table, self.base),
            cookie: cookie::cookie(table, &route.path),
            route,
            name,
        };
        entrance::check(table, &app, self.run_dir.as_deref());
        app.shares = self.share(table, &app, &listen);
        tls::check(table, &app);
        route::check(table, &app, &self.taken);
        self.apps.push(app);
    }

    /// Whether another app is on one of these addresses, too; complains where nothing tells the two apart.
    fn share(&mut self, table: &Table<'_>, app: &App, listen: &[Given<SocketAddr>]) -> bool {
        let mut shares = false;
        for Given { value: address, span } in listen {
            for other in self.apps.iter_mut().filter(|other| other.listen.contains(address)) {
                let (tls, at) = (table.has("tls"), address.to_string());
                let mixed = tls::conflict(app, other, &at).filter(|_| tls == app.tls.is_some());
                let mixed = mixed.or_else(|| route::mixed_flags(app, other, &at));
                if let Some(message) = route::conflict(app, other, &at).or(mixed) {
                    table.wrong(span.clone(), message);
                }
                other.shares = true;
                shares = true;
                route::check(table, other, &self.taken);
            }
        }
        shares
    }

    fn proxy_protocol(&self, table: &Table<'_>) -> bool {
        let given = table.flag("proxy_protocol").filter(|given| given.value);
        if let Some(Given { span, .. }) = given.as_ref().filter(|_| self.trusts_nobody) {
            table.wrong(
                span.clone(),
                "`proxy_protocol` is for trusted proxies, and there are none; add homing.trusted_proxies, or remove it",
            );
        }
        given.is_some()
    }

    fn name(&mut self, table: &Table<'_>) -> String {
        if !table.has("name") {
            table.absent("[[app]] has no `name`; add one, such as name = \"sales\"");
        }
        let Some(Given { value: name, span }) = table.parsed("name", value::name) else { return String::new() };
        if self.names.contains(&name) {
            table.wrong(span, format!("there are two apps named `{name}`; rename one"));
        }
        self.names.push(name.clone());
        name
    }

    fn listen(&mut self, table: &Table<'_>, app: &str) -> Vec<Given<SocketAddr>> {
        const EXAMPLE: &str = "[\"0.0.0.0:8080\"]";
        if !table.has("listen") {
            table.absent(format!("[[app]] has no `listen`; add the addresses for clients, such as listen = {EXAMPLE}"));
        }
        let mut addresses = Vec::new();
        for Given { value: text, span } in table.strings("listen", EXAMPLE).unwrap_or_default() {
            let address = match listen::address(text) {
                Ok(address) => address,
                Err(message) => {
                    table.wrong(span, message);
                    continue;
                }
            };
            let new = Taken { address, app: app.to_owned() };
            if let Some(message) = listen::conflict(&new, &self.taken) {
                table.wrong(span.clone(), message);
            }
            self.taken.push(new);
            addresses.push(Given { value: address, span });
        }
        addresses
    }
}

/// Datagrams go where XDP sends them: homing itself has no use for them.
fn listen_udp(table: &Table<'_>) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for Given { value: text, span } in table.strings("listen_udp", "[\"0.0.0.0:8080\"]").unwrap_or_default() {
        match listen::address(text) {
            Ok(address) if addresses.contains(&address) => {
                table.wrong(span, format!("{address} is given twice; remove one"));
            }
            Ok(address) => addresses.push(address),
            Err(message) => table.wrong(span, message),
        }
    }
    addresses
}

fn affinity(table: &Table<'_>) -> Affinity {
    let choices = [Affinity::Ip, Affinity::Cookie, Affinity::Auto].map(|affinity| (affinity.name(), affinity));
    table.parsed("affinity", |text| value::choice(text, &choices)).map_or(Affinity::Auto, |given| given.value)
}

fn send_proxy(table: &Table<'_>) -> Option<SendProxy> {
    let versions = [("v1", SendProxy::V1), ("v2", SendProxy::V2)];
    table.parsed("send_proxy_protocol", |text| value::choice(text, &versions)).map(|given| given.value)
}

/// `None` when it is given and wrong: then what is relative to it cannot be looked at.
fn directory(table: &Table<'_>, base: &Path) -> Option<PathBuf> {
    if !table.has("directory") {
        return Some(base.to_owned());
    }
    let parse = |text: &str| {
        let path = value::path(text, base)?;
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => Ok(path),
            Ok(_) => Err(format!("`{}` is not a directory; correct it", shown(&path.to_string_lossy()))),
            Err(error) => Err(format!(
                "`{}` cannot be used: {error}; create it, or correct the path",
                shown(&path.to_string_lossy())
            )),
        }
    };
    table.parsed("directory", parse).map(|given| given.value)
}

fn workers(table: &Table<'_>) -> Workers {
    table.know(keys::WORKERS);
    let min = table.number("min", 0, WORKERS_MAX);
    let max = table.number("max", 1, WORKERS_MAX);
    let workers = Workers {
        min: min.as_ref().map_or(DEFAULT_WORKERS.min, |given| given.value),
        max: max.as_ref().map_or(DEFAULT_WORKERS.max, |given| given.value),
        max_connections: table
            .number("max_connections", 1, CONNECTIONS_MAX)
            .map_or(DEFAULT_WORKERS.max_connections, |given| given.value),
        load_factor: table.fraction("load_factor").unwrap_or(DEFAULT_WORKERS.load_factor),
    };
    if workers.min > workers.max {
        let Workers { min: low, max: high, .. } = workers;
        match (min, max) {
            (_, Some(max)) => {
                table.wrong(max.span, format!("`max` is {high}, below `min`, {low}; raise one or lower the other"));
            }
            (Some(min), None) if !table.has("max") => {
                table.wrong(
                    min.span,
                    format!("`min` is {low}, above `max`, which is {high} unless given; add max = {low} or more"),
                );
            }
            // A `max` that is itself wrong has been complained of.
            _ => {}
        }
    }
    workers
}

fn timeouts(table: &Table<'_>) -> Timeouts {
    table.know(keys::TIMEOUTS);
    let read = |key: &str, min, max, default| duration(table, key, min, max).unwrap_or(default);
    Timeouts {
        start: read("start", START_MIN, DAY, DEFAULT_TIMEOUTS.start),
        idle: match duration(table, "idle", Duration::ZERO, DRAIN_MAX) {
            Some(never) if never.is_zero() => None,
            Some(idle) => Some(idle),
            None => DEFAULT_TIMEOUTS.idle,
        },
        drain: read("drain", Duration::ZERO, DRAIN_MAX, DEFAULT_TIMEOUTS.drain),
        stop: read("stop", Duration::ZERO, STOP_MAX, DEFAULT_TIMEOUTS.stop),
        affinity: read("affinity", SECOND, AFFINITY_MAX, DEFAULT_TIMEOUTS.affinity),
    }
}

/// `None` where it is not given, or wrong.
pub(super) fn duration(table: &Table<'_>, key: &str, min: Duration, max: Duration) -> Option<Duration> {
    table.amount(key, |text| value::duration(text, min, max)).map(|given| given.value)
}

fn health(app: &Table<'_>) -> Health {
    let Some(table) = app.table("health") else { return Health { path: None, interval: HEALTH_INTERVAL } };
    table.know(keys::HEALTH);
    Health {
        path: table.parsed("path", value::health_path).map(|given| given.value),
        interval: duration(&table, "interval", SECOND, DAY).unwrap_or(HEALTH_INTERVAL),
    }
}

fn client(table: &Table<'_>) -> Client {
    table.know(keys::CLIENT);
    let read = |key: &str, max: u8, default: u8| {
        let given = table.number(key, 0, u32::from(max)).map(|given| given.value);
        given.and_then(|number| u8::try_from(number).ok()).unwrap_or(default)
    };
    let auto_promote = table.number("auto_promote", 1, AUTO_PROMOTE_MAX);
    Client {
        auto_promote: auto_promote.map_or(DEFAULT_CLIENT.auto_promote, |given| given.value),
        ipv4: read("ipv4_prefix", 32, DEFAULT_CLIENT.ipv4),
        ipv6: read("ipv6_prefix", 128, DEFAULT_CLIENT.ipv6),
    }
}
