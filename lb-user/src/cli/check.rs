//! `homing check`: all that is wrong with a configuration, or what it will do and why.

pub(crate) mod json;

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use self::json::Report;
use super::{ConfigFile, DONE, USAGE};
use crate::config::isolation::size_in_words;
use crate::config::{
    self, Affinity, App, Backend, Config, Forward, Host, Http, HttpOnly, Isolation, KernelPath, Metrics, Protect, Rate,
    Tls,
};
use crate::datapath;
use crate::tls::{Certificate, Validity};

const ON_UNIX_SOCKETS: &str = "its workers listen on unix sockets";

#[derive(clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// As JSON, whether there are errors or not.
    #[arg(long)]
    json: bool,
}

pub(super) fn check(Options { file: ConfigFile { config: path }, json }: &Options) -> u8 {
    match config::file::load(path) {
        Ok(config) => {
            let missing = datapath::missing();
            let has_kernel_path = config.homing.kernel_path != KernelPath::Off && missing.is_none();
            let others = if has_kernel_path { datapath::others(&config) } else { Vec::new() };
            if *json {
                Report::of(path, &config, missing.as_deref(), &others).print();
            } else {
                print!("{}", render(path, &config, missing.as_deref(), &others, nix::unistd::geteuid().is_root()));
            }
            DONE
        }
        Err(errors) => {
            if *json {
                Report::of_errors(path, &errors).print();
            } else {
                eprint!("{errors}");
            }
            USAGE
        }
    }
}

/// `missing`: what this machine, or this user, lacks for the kernel path. `others`: whose programs are where homing's go.
/// `is_root`: who asks, and so would run it.
fn render(path: &Path, config: &Config, missing: Option<&str>, others: &[String], is_root: bool) -> String {
    let mut out = String::new();
    let apps = if config.apps.len() == 1 { "1 app" } else { &format!("{} apps", config.apps.len()) };
    let _ = writeln!(out, "{}: no errors, {apps}", path.display());
    if config.homing.kernel_path != KernelPath::Off {
        const MB: u64 = 1_000_000;
        let sizes = datapath::Sizes::of(config);
        let _ = writeln!(
            out,
            "kernel memory: {} MB, with room for {} bound clients (homing.bindings)",
            sizes.bytes().div_ceil(MB),
            sizes.bindings
        );
    }
    if let Some(metrics) = &config.homing.metrics {
        let _ = writeln!(out, "metrics and dashboard: http://{}/, {}", metrics.address, who_may_see(metrics));
        if let Some(note) = metrics.token_file.as_deref().and_then(open_to_all) {
            let _ = writeln!(out, "note: {note}");
        }
    }
    for other in others {
        let _ = writeln!(out, "note: {other}");
    }
    for app in &config.apps {
        let (path, why) = path_of(app, config.homing.kernel_path, missing);
        let udp = app.listen_udp.iter().map(|address| format!("udp {address}"));
        let listen: Vec<String> = app.listen.iter().map(ToString::to_string).chain(udp).collect();
        let _ = writeln!(out, "\n{}  {}", app.name, listen.join(" "));
        let _ = writeln!(out, "  path      {path}");
        let _ = writeln!(out, "  why       {why}");
        let _ = writeln!(out, "  crowds    {}", crowds(app));
        if app.protect != Protect::default() {
            let _ = writeln!(out, "  protect   {}", protection(app, config.homing.kernel_path, missing));
        }
        if let Some(tls) = &app.tls {
            let (words, notes) = encryption(app, tls, SystemTime::now());
            let _ = writeln!(out, "  tls       {words}");
            for note in notes {
                let _ = writeln!(out, "  note      {note}");
            }
        }
        if !app.command.is_empty() {
            let _ = writeln!(out, "  workers   {}", workers(app));
            let _ = writeln!(out, "  command   {}", app.command.join(" "));
            if let Some(confined) = confined(app) {
                let _ = writeln!(out, "  confined  {confined}");
            }
            if is_root && app.user.as_deref().is_none_or(|user| user == "root") {
                let _ = writeln!(out, "  note      its workers run as root; give it a `user` that owns nothing else");
            }
        }
        let has_proxies = !config.homing.trusted_proxies.is_empty();
        if has_proxies && matches!(path, "kernel" | "both") {
            let _ = writeln!(
                out,
                "  note      the kernel path sees the address of a proxy in front, not whom it speaks for; for an app behind a\n            \
                 trusted proxy set affinity = \"cookie\", or proxy_protocol = true"
            );
        }
        if app.http != Http::default() && matches!(path, "kernel" | "both") {
            let _ = writeln!(
                out,
                "  note      [app.http] and the times of requests hold for what comes by the HTTP path; a worker's own connections\n            \
                 have the worker's own limits. affinity = \"cookie\" takes all clients to the HTTP path"
            );
        }
        for backend in &app.backends {
            let Backend { address, forward, weight } = backend;
            let _ = writeln!(out, "  backend   {address} by {}, weight {weight}", forward.name());
        }
        if path == "kernel" && app.listen.iter().any(SocketAddr::is_ipv6) {
            let _ = writeln!(
                out,
                "  note      an IPv6 client takes the kernel path only to a worker that listens on IPv6 too;\n            \
                 others are forwarded by the HTTP path, by address all the same"
            );
        }
    }
    out.push_str("\nurls\n");
    for line in urls(&config.apps) {
        let _ = writeln!(out, "  {line}");
    }
    out
}

fn who_may_see(metrics: &Metrics) -> &'static str {
    match (&metrics.token, metrics.actions) {
        (None, _) => "for everybody on this machine",
        (Some(_), false) => "for who shows the token",
        (Some(_), true) => "for who shows the token, to drain and restart, too",
    }
}

fn open_to_all(token: &Path) -> Option<String> {
    let mode = std::fs::metadata(token).map_or(0, |metadata| metadata.mode());
    let shown = token.display();
    (mode & 0o007 != 0).then(|| {
        format!("everybody on this machine can read the token {shown} (mode {:o}); chmod 640 it", mode & 0o777)
    })
}

/// Which app each URL leads to, address by address, as the HTTP path looks for it: the first that fits.
fn urls(apps: &[App]) -> Vec<String> {
    let mut rows = Vec::new();
    for app in apps {
        for (&address, host) in app.listen.iter().flat_map(|at| app.route.patterns().map(move |host| (at, host))) {
            let path = &app.route.path;
            let name = host.map_or("*".to_owned(), ToString::to_string);
            let kind = match host {
                Some(Host::Exact(_)) => 0,
                Some(Host::Below(_)) => 1,
                None => 2,
            };
            let scheme = if app.tls.is_some() { "https" } else { "http" };
            let url = format!("{scheme}://{name}:{}{path}", address.port());
            let strip = if path != "/" && app.route.strip_path { ", which sees what follows the path" } else { "" };
            let rank = (address, kind, Reverse(name.len()), name, Reverse(path.len()), path);
            rows.push((rank, [address.to_string(), url, format!("{}{strip}", app.name)]));
        }
    }
    rows.sort();
    let width = |column: usize| rows.iter().map(|(_, texts)| texts[column].len()).max().unwrap_or(0);
    let (address_width, url_width) = (width(0), width(1));
    let line = |[address, url, app]: &[String; 3]| format!("{address:address_width$}  {url:url_width$}  {app}");
    rows.iter().map(|(_, texts)| line(texts)).collect()
}

fn path_of(app: &App, kernel_path: KernelPath, missing: Option<&str>) -> (&'static str, String) {
    if let Some(told) = app.http_only() {
        let why = match told {
            HttpOnly::Tls => "`tls`: homing ends it",
            HttpOnly::ProxyProtocol => "`proxy_protocol`: the kernel would see the proxy's address, not the client's",
            HttpOnly::H2c => "`h2c`: homing speaks HTTP/2 with clients and HTTP/1.1 with workers",
            HttpOnly::SendProxy => "`send_proxy_protocol`: homing tells workers whom they serve",
            HttpOnly::App => "other apps share an address with it: only a request says whose it is",
            HttpOnly::Host => "`hosts`: only a request says which host it is for",
            HttpOnly::Path => "`path`: only a request says what it is for",
        };
        let by_address =
            if app.affinity == Affinity::Ip { "; its clients are told apart by address all the same" } else { "" };
        return ("http", format!("{why}{by_address}"));
    }
    if app.has_workers_on_unix_sockets() && !app.has_kernel_path() {
        return ("http", format!("{ON_UNIX_SOCKETS}, which only the HTTP path reaches"));
    }
    match (app.affinity, kernel_path, missing) {
        (Affinity::Cookie, _, _) => ("http", "affinity = \"cookie\": only the HTTP path reads cookies".to_owned()),
        (_, KernelPath::Off, _) => ("http", "kernel_path = \"off\"".to_owned()),
        (_, KernelPath::Required, Some(missing)) => {
            ("none", format!("kernel_path = \"required\", and this run would be refused: {missing}"))
        }
        (_, KernelPath::Preferred, Some(missing)) => ("http", format!("no kernel path here: {missing}")),
        (_, _, None) => by_backends(app),
    }
}

/// Whom the app's certificate is for, and what will be wrong with it.
fn encryption(app: &App, tls: &Tls, now: SystemTime) -> (String, Vec<String>) {
    /// Who renews certificates by themselves does it a month before their end.
    const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);
    let path = tls.certificate.display();
    let certificate = match Certificate::load(tls) {
        Ok(certificate) => certificate,
        Err(why) => return (why, Vec::new()),
    };
    let mut notes = Vec::new();
    match certificate.validity(now, SOON) {
        Validity::Valid => {}
        Validity::ExpiresSoon => notes.push(format!("the certificate in {path} expires within two weeks; renew it")),
        Validity::Expired => notes.push(format!("the certificate in {path} has expired; browsers refuse it: renew it")),
        Validity::NotYet => notes.push(format!("the certificate in {path} is not valid yet; see the clock")),
    }
    for host in app.route.hosts.iter().filter(|host| !certificate.covers(host)) {
        notes.push(format!("the certificate in {path} is not for {host}; browsers refuse it there"));
    }
    let mode = std::fs::metadata(&tls.key).map_or(0, |metadata| metadata.mode());
    if mode & 0o007 != 0 {
        let key = tls.key.display();
        notes.push(format!("everybody on this machine can use the key {key} (mode {:o}); chmod 600 it", mode & 0o777));
    }
    let names: Vec<&str> = certificate.names.iter().map(String::as_str).collect();
    let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
    (format!("1.2 and 1.3, for {names}"), notes)
}

fn protection(app: &App, kernel_path: KernelPath, missing: Option<&str>) -> String {
    let protect = &app.protect;
    let mut words = Vec::new();
    match (protect.allow.len(), protect.deny.len()) {
        (0, 0) => {}
        (0, denied) => words.push(format!("denied: {denied} on the list")),
        (allowed, denied) => words.push(format!("allowed: {allowed} on the list and nobody else; denied: {denied}")),
    }
    let rates = [("a client", protect.client), ("all clients together", protect.app)];
    for (whose, Rate { per_second, burst }) in rates.into_iter().filter_map(|(whose, rate)| Some((whose, rate?))) {
        words.push(format!("new connections of {whose}: {per_second} a second, {burst} at once"));
    }
    let by = match (app.shares || app.proxy_protocol, kernel_path == KernelPath::Off || missing.is_some()) {
        (true, _) => "the HTTP path, with a connection's first request for it",
        (false, true) => "the HTTP path, at the door",
        (false, false) => "XDP",
    };
    format!("{}; by {by}", words.join("; "))
}

/// What becomes of an address that is many people.
fn crowds(app: &App) -> String {
    let above = app.client.auto_promote;
    match (app.affinity, app.affinity_in_force()) {
        (Affinity::Auto, Affinity::Auto) => format!(
            "a client with more than {above} open connections is taken for many: the HTTP path tells them apart by cookie"
        ),
        (Affinity::Auto, _) => {
            "one backend each: backends that answer directly cannot be counted, so \"auto\" is \"ip\" \
                                here"
                .to_owned()
        }
        (Affinity::Ip, _) => "affinity = \"ip\": they share one worker".to_owned(),
        (Affinity::Cookie, _) => "told apart by cookie, as everyone".to_owned(),
    }
}

fn by_backends(app: &App) -> (&'static str, String) {
    let by_http = app.backends.iter().any(|backend| backend.forward == Forward::Http);
    match (app.has_kernel_path(), app.has_workers_on_unix_sockets(), by_http) {
        (false, ..) => ("http", "forward = \"http\": only the HTTP path reaches these backends".to_owned()),
        (true, false, false) => ("kernel", "an address alone names the worker".to_owned()),
        (true, false, true) => {
            ("both", "an address alone names the worker; backends by http are reached by the HTTP path".to_owned())
        }
        (true, true, _) => {
            ("both", format!("an address alone names the backend; {ON_UNIX_SOCKETS}, reached by the HTTP path"))
        }
    }
}

/// Whom the workers run as and what they may use, where anything is said of it.
fn confined(app: &App) -> Option<String> {
    let Isolation { group, memory_max, cpu_weight, .. } = &app.isolation;
    let words = [
        app.user.as_ref().map(|user| format!("user {user}")),
        group.as_ref().map(|group| format!("group {group}")),
        memory_max.map(|bytes| format!("memory {} for all processes of a worker", size_in_words(bytes))),
        cpu_weight.map(|weight| format!("CPU weight {weight}")),
        (!app.isolation.no_new_privileges)
            .then(|| "may gain privileges by setuid programs, for which homing keeps its bounding set".to_owned()),
    ];
    let words: Vec<String> = words.into_iter().flatten().collect();
    (!words.is_empty()).then(|| words.join(", "))
}

fn workers(app: &App) -> String {
    match (app.workers.min, app.workers.max) {
        (0, max) => format!("started on demand, at most {max}"),
        (min, max) if min == max => format!("{min}"),
        (min, max) => format!("{min} to {max}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::tls::testing::{Files, issue};

    fn why(lines: &str) -> String {
        let text = format!("[[app]]\nname = \"sales\"\nlisten = [\"127.0.0.1:8080\"]\ncommand = [\"sh\"]\n{lines}\n");
        let config =
            config::file::parse(&text, "homing.toml", Path::new("/")).unwrap_or_else(|errors| panic!("{errors}"));
        let (path, why) = path_of(&config.apps[0], KernelPath::Preferred, None);
        format!("{path}: {why}")
    }

    #[test]
    fn what_only_requests_tell_needs_the_http_path() {
        assert_eq!(why("hosts = [\"a\"]"), "http: `hosts`: only a request says which host it is for");
        assert_eq!(
            why("path = \"/a\"\naffinity = \"ip\""),
            "http: `path`: only a request says what it is for; its clients are told apart by address all the same"
        );
        let second = "[[app]]\nname = \"b\"\nlisten = [\"127.0.0.1:8080\"]\ncommand = [\"sh\"]\nhosts = [\"b\"]";
        assert_eq!(why(second), "http: other apps share an address with it: only a request says whose it is");
    }

    #[test]
    fn a_token_that_everybody_can_read_is_told() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let token = dir.path().join("token");
        std::fs::write(&token, "0123456789abcdef").expect("written");
        let text = format!(
            "[homing]\nmetrics = \"0.0.0.0:9180\"\nmetrics_token_file = {token:?}\n\
             [[app]]\nname = \"a\"\nlisten = [\"[::]:80\"]\ncommand = [\"sh\"]\n"
        );
        let config = config::file::parse(&text, "homing.toml", Path::new("/")).expect("it is right");
        let told = |mode| {
            std::fs::set_permissions(&token, std::fs::Permissions::from_mode(mode)).expect("set");
            render(Path::new("homing.toml"), &config, None, &[], false)
        };
        assert!(told(0o644).contains("(mode 644); chmod 640 it"), "{}", told(0o644));
        let told = told(0o640);
        assert!(told.contains("http://0.0.0.0:9180/, for who shows the token\n") && !told.contains("chmod"), "{told}");
    }

    #[test]
    fn what_browsers_will_refuse_is_told() {
        let files = Files::new(&issue(&["a.test"]));
        let tls = files.tls();
        let mode = |mode| std::fs::set_permissions(&tls.key, std::fs::Permissions::from_mode(mode)).expect("set");
        let text = format!(
            "[[app]]\nname = \"a\"\nlisten = [\"[::]:443\"]\nhosts = [\"a.test\", \"b.test\"]\ncommand = [\"sh\"]\n\
             tls = {{ certificate = {:?}, key = {:?} }}\n",
            tls.certificate, tls.key
        );
        let config =
            config::file::parse(&text, "homing.toml", Path::new("/")).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(path_of(&config.apps[0], KernelPath::Preferred, None).1, "`tls`: homing ends it");
        assert_eq!(urls(&config.apps)[0], "[::]:443  https://a.test:443/  a");
        let told = |days: i64| {
            let day = Duration::from_secs(24 * 60 * 60);
            let now = SystemTime::now();
            let now = if days < 0 { now - day * days.unsigned_abs() as u32 } else { now + day * days as u32 };
            encryption(&config.apps[0], &tls, now)
        };
        mode(0o600);
        let (words, notes) = told(0);
        assert_eq!(words, "1.2 and 1.3, for a.test");
        assert!(notes.len() == 1 && notes[0].ends_with("is not for b.test; browsers refuse it there"), "{notes:?}");
        mode(0o644);
        assert!(told(0).1[1].contains("everybody on this machine can use the key"));
        for (days, words) in [(20, "expires within two weeks"), (40, "has expired"), (-40, "is not valid yet")] {
            assert!(told(days).1[0].contains(words), "{days}: {:?}", told(days));
        }
    }

    #[test]
    fn the_url_map_stands_in_the_order_of_search() {
        let app = |name: &str, lines: &str| {
            format!("[[app]]\nname = \"{name}\"\nlisten = [\"0.0.0.0:80\"]\ncommand = [\"sh\"]\n{lines}\n")
        };
        let text = [
            app("rest", ""),
            app("wild", "hosts = [\"*.b.org\"]"),
            app("eu", "hosts = [\"*.eu.b.org\", \"x.b.org\"]"),
            app("sales", "path = \"/sales\""),
            app("deep", "path = \"/sales/eu\"\nstrip_path = false"),
        ];
        let config = config::file::parse(&text.concat(), "homing.toml", Path::new("/")).expect("it is right");
        assert_eq!(
            urls(&config.apps),
            [
                "0.0.0.0:80  http://x.b.org:80/     eu",
                "0.0.0.0:80  http://*.eu.b.org:80/  eu",
                "0.0.0.0:80  http://*.b.org:80/     wild",
                "0.0.0.0:80  http://*:80/sales/eu   deep",
                "0.0.0.0:80  http://*:80/sales      sales, which sees what follows the path",
                "0.0.0.0:80  http://*:80/           rest",
            ]
        );
    }

    #[test]
    fn what_workers_listen_on_decides_the_path() {
        const ON_UNIX: &str = "http: its workers listen on unix sockets, which only the HTTP path reaches";
        assert_eq!(why("env.A = \"{port}\""), "kernel: an address alone names the worker");
        assert_eq!(why("pass_socket = true"), "kernel: an address alone names the worker");
        assert_eq!(why("env.A = \"{socket}\""), ON_UNIX);
        assert_eq!(why("env.A = \"{socket}\"\naffinity = \"cookie\""), ON_UNIX);
        assert_eq!(
            why("env.A = \"{socket}\"\nbackends = [{ address = \"10.0.0.1:8080\", forward = \"l2\" }]"),
            "both: an address alone names the backend; its workers listen on unix sockets, reached by the HTTP path"
        );
    }
}
