//! The configuration, resolved: every default filled in, every value checked. What is given in the file, with its
//! lines and columns, is `file`'s business; nothing past this module sees TOML.

mod errors;
pub mod file;
pub mod http;
pub mod isolation;
mod location;
mod route;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

pub use errors::{Errors, Problem};
pub use http::{ErrorPage, Http, Said};
pub use isolation::Isolation;
pub use route::{Host, Route};

/// A whole configuration file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub homing: Homing,
    /// In the order of the file; names are unique.
    pub apps: Vec<App>,
}

/// The `[homing]` table.
#[derive(Clone, Debug, PartialEq)]
pub struct Homing {
    pub control_socket: PathBuf,
    pub state_dir: PathBuf,
    /// For the sockets of workers, each in a directory of its own.
    pub run_dir: PathBuf,
    pub log_dir: PathBuf,
    /// Where programs, maps and links are pinned: a directory on a BPF file system.
    pub pin_dir: PathBuf,
    /// Whether workers get control groups of their own where the machine allows it.
    pub cgroups: Cgroups,
    pub kernel_path: KernelPath,
    /// Interfaces for XDP; empty: those that carry the listen addresses.
    pub interfaces: Vec<String>,
    /// Proxies that are believed whom they speak for.
    pub trusted_proxies: Vec<IpNet>,
    /// Clients that the kernel's table of bindings has room for, 1,024 to 16,000,000.
    pub bindings: u32,
    /// Workers that may be starting at once, over all apps, 1 to 1,024.
    pub starts_at_once: u32,
    /// Of requests that the HTTP path serves.
    pub access_log: Option<crate::access::Settings>,
    /// Of the same requests.
    pub traces: Option<crate::spans::Settings>,
    /// Of workers' output.
    pub output: crate::output::Limits,
    /// Where metrics and the dashboard are to be had, if anywhere.
    pub metrics: Option<Metrics>,
}

/// The listener for metrics and the dashboard.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    pub address: SocketAddr,
    pub token_file: Option<PathBuf>,
    /// What the file held; who asks must show it.
    pub token: Option<crate::metrics::Token>,
    /// Whether the dashboard may give orders; only with a token.
    pub actions: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelPath {
    /// Refuse to start without it.
    Required,
    /// Use it where the machine can, else say once why not and serve on the HTTP path.
    Preferred,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// Where they can be made; else workers are watched by way of /proc.
    Preferred,
    Off,
}

/// One `[[app]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct App {
    pub name: String,
    /// One or more.
    pub listen: Vec<SocketAddr>,
    /// Which requests there are for it.
    pub route: Route,
    /// Clients come by TLS, which homing ends.
    pub tls: Option<Tls>,
    /// Connections are those of trusted proxies, and begin with whom they are for.
    pub proxy_protocol: bool,
    /// Clients may speak HTTP/2 without TLS, if they know beforehand.
    pub h2c: bool,
    /// Connections to its workers begin with whom they are for.
    pub send_proxy: Option<SendProxy>,
    /// Another app listens on one of its addresses, too.
    pub shares: bool,
    /// Further addresses, for datagrams; only with backends that all answer directly.
    pub listen_udp: Vec<SocketAddr>,
    pub affinity: Affinity,
    /// Program and arguments, with placeholders for what a worker listens on. Empty: there are only backends.
    pub command: Vec<String>,
    pub listens_on: ListensOn,
    /// Remote hosts beside the workers, or in place of them.
    pub backends: Vec<Backend>,
    /// Working directory of the workers, absolute.
    pub directory: PathBuf,
    pub user: Option<String>,
    pub env: BTreeMap<String, String>,
    pub isolation: Isolation,
    pub workers: Workers,
    pub timeouts: Timeouts,
    pub health: Health,
    pub client: Client,
    pub protect: Protect,
    pub http: Http,
    pub cookie: Cookie,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Affinity {
    /// By client address, in the kernel.
    Ip,
    /// By cookie, on the HTTP path.
    Cookie,
    /// By address, until one address shows more connections than one person makes; then its users by cookie.
    Auto,
}

/// What a worker is given to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ListensOn {
    /// A port of this machine's, which it binds.
    Port,
    /// The path of a unix socket, which it binds.
    Socket,
    /// A socket that listens already.
    Passed,
}

impl Affinity {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Cookie => "cookie",
            Self::Auto => "auto",
        }
    }
}

impl App {
    /// The affinity that is in force: connections to hosts that answer directly are seen by nobody here, so their
    /// clients cannot be counted and never are promoted.
    pub fn affinity_in_force(&self) -> Affinity {
        let answers_directly = |backend: &Backend| backend.forward != Forward::Http;
        match self.affinity {
            Affinity::Auto if self.backends.iter().any(answers_directly) => Affinity::Ip,
            given => given,
        }
    }

    /// What of the app the kernel cannot do, so that all of it goes by the HTTP path.
    pub fn http_only(&self) -> Option<HttpOnly> {
        if self.tls.is_some() {
            Some(HttpOnly::Tls)
        } else if self.proxy_protocol {
            Some(HttpOnly::ProxyProtocol)
        } else if self.h2c {
            Some(HttpOnly::H2c)
        } else if self.send_proxy.is_some() {
            Some(HttpOnly::SendProxy)
        } else if self.shares {
            Some(HttpOnly::App)
        } else if !self.route.hosts.is_empty() {
            Some(HttpOnly::Host)
        } else if self.route.path != "/" {
            Some(HttpOnly::Path)
        } else {
            None
        }
    }

    /// Whether there is somebody whom the kernel can hand a connection to.
    pub fn has_kernel_path(&self) -> bool {
        if self.http_only().is_some() {
            return false;
        }
        let has_ports = !self.command.is_empty() && self.listens_on != ListensOn::Socket;
        has_ports || self.backends.iter().any(|backend| backend.forward != Forward::Http)
    }

    /// Whether there is somebody whom only the HTTP path reaches.
    pub fn needs_http_path(&self) -> bool {
        self.has_workers_on_unix_sockets() || self.backends.iter().any(|backend| backend.forward == Forward::Http)
    }

    pub fn has_workers_on_unix_sockets(&self) -> bool {
        !self.command.is_empty() && self.listens_on == ListensOn::Socket
    }
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendProxy {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tls {
    /// The server's own first, those that vouch for it after.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What only the HTTP path does: end TLS, or read what a connection or a request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpOnly {
    Tls,
    /// Read whom a proxy speaks for.
    ProxyProtocol,
    /// Speak HTTP/2 without TLS.
    H2c,
    /// Tell workers by the PROXY protocol whom they serve.
    SendProxy,
    /// Which of the apps on the address it is for.
    App,
    /// Whether it is for one of the app's hosts.
    Host,
    /// Whether it is below the app's path.
    Path,
}

/// A remote host that serves the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    pub address: SocketAddr,
    pub forward: Forward,
    /// Its share, 1 to 100; a worker has 1.
    pub weight: u32,
}

/// How a remote host is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// By the HTTP path.
    Http,
    /// By its link address, the packet as it is.
    L2,
    /// In an IP packet.
    Ipip,
    /// In a UDP packet.
    Gue,
}

impl Forward {
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::L2 => "l2",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workers {
    /// 0: start on demand.
    pub min: u32,
    /// 1 to 1,024, not below `min`; 0 for an app without a command.
    pub max: u32,
    /// Of one worker, beyond which it takes no new clients, 1 to 1,000,000.
    pub max_connections: u32,
    /// The part of the running workers' connections above which one more is started, 0 to 1.
    pub load_factor: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From spawn to ready; requests are held this long at most.
    pub start: Duration,
    /// A worker without connections is ended after this, down to `workers.min`; `None`: never.
    pub idle: Option<Duration>,
    /// A draining worker is stopped after this, whoever is still connected.
    pub drain: Duration,
    /// From the stop signal to SIGKILL.
    pub stop: Duration,
    /// A binding without connections is forgotten after this.
    pub affinity: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// GET this; 2xx or 3xx is ready. Absent: a TCP connect.
    pub path: Option<String>,
    /// Between questions to a worker that is ready, where there is a path to ask for.
    pub interval: Duration,
}

/// Who may connect, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protect {
    /// Where it is not empty, nobody else may.
    pub allow: Vec<IpNet>,
    /// Between the two lists the longest prefix decides.
    pub deny: Vec<IpNet>,
    /// New connections of one client.
    pub client: Option<Rate>,
    /// New connections of all clients together.
    pub app: Option<Rate>,
}

/// New connections per second, and how many may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// 1 to 1,000,000.
    pub per_second: u32,
    /// 1 to 10,000,000.
    pub burst: u32,
}

impl Rate {
    /// Between arrivals at an even pace.
    pub fn interval_ns(self) -> u64 {
        1_000_000_000 / u64::from(self.per_second)
    }

    /// How early an arrival may come.
    pub fn tolerance_ns(self) -> u64 {
        self.interval_ns() * u64::from(self.burst - 1)
    }
}

impl Protect {
    pub fn has_lists(&self) -> bool {
        !(self.allow.is_empty() && self.deny.is_empty())
    }

    pub fn has_rates(&self) -> bool {
        self.client.is_some() || self.app.is_some()
    }

    /// As the kernel's programs decide it.
    pub fn is_denied(&self, address: IpAddr) -> bool {
        let longest = |list: &[IpNet]| list.iter().filter(|net| net.contains(&address)).map(IpNet::prefix_len).max();
        match (longest(&self.allow), longest(&self.deny)) {
            (allowed, Some(denied)) => allowed.is_none_or(|allowed| allowed < denied),
            (None, None) => !self.allow.is_empty(),
            (Some(_), None) => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Bits of its prefix, 0 to 32.
    pub ipv4: u8,
    /// Bits of its prefix, 0 to 128.
    pub ipv6: u8,
    /// Open connections of one client beyond which it is promoted, 1 to 65,535. For [`Affinity::Auto`].
    pub auto_promote: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    pub name: String,
    pub secure: Secure,
    /// The app's own.
    pub path: String,
    pub same_site: SameSite,
    /// How long a browser keeps it, whole seconds; `None`: until it is closed.
    pub max_age: Option<Duration>,
    /// A jar of its own for each site that shows the app in a frame (CHIPS); only where the cookie is secure.
    pub partitioned: bool,
}

impl Default for Cookie {
    fn default() -> Self {
        Self {
            name: "homing".to_owned(),
            secure: Secure::Auto,
            path: "/".to_owned(),
            same_site: SameSite::Lax,
            max_age: None,
            partitioned: false,
        }
    }
}

/// The `SameSite` attribute of the cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    Strict,
    Lax,
    /// For an app in a frame of another site; only where the cookie is secure, elsewhere as `Lax`.
    None,
}

/// The `Secure` attribute of the cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secure {
    /// When the client came by TLS.
    Auto,
    Always,
    Never,
}
