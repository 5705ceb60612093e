//! Scenarios of `file`.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::access;
use crate::config::isolation::{self, StopSignal};
use crate::config::{
    Affinity, App, Cgroups, Client, Cookie, Health, Host, Http, HttpOnly, Isolation, KernelPath, ListensOn, Protect,
    Rate, Route, SameSite, Secure, Timeouts, Workers,
};
use crate::output::Limits;
use crate::spans;

/// What every app needs, in three lines.
pub(super) const APP: &str = "[[app]]\nname = \"sales\"\nlisten = [\"127.0.0.1:8080\"]\ncommand = [\"sh\"]\n";

/// All complaints about a text, as `homing check` prints them, but without the quoted lines.
pub(super) fn complaints(text: &str) -> Vec<String> {
    let errors = parse(text, "homing.toml", Path::new("/")).expect_err("it has errors");
    let first_line = |problem: &Problem| problem.to_string().lines().next().unwrap_or_default().to_owned();
    errors.0.iter().map(first_line).collect()
}

pub(super) fn accepted(text: &str) -> Config {
    parse(text, "homing.toml", Path::new("/")).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn three_lines_are_enough_and_the_rest_is_as_documented() {
    let config = accepted(APP);
    assert_eq!(
        config.apps,
        [App {
            name: "sales".to_owned(),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8080))],
            listen_udp: vec![],
            route: Route::default(),
            shares: false,
            tls: None,
            proxy_protocol: false,
            h2c: false,
            send_proxy: None,
            affinity: Affinity::Auto,
            command: vec!["sh".to_owned()],
            listens_on: ListensOn::Port,
            backends: Vec::new(),
            directory: PathBuf::from("/"),
            user: None,
            env: BTreeMap::new(),
            isolation: Isolation::default(),
            workers: Workers { min: 1, max: 4, max_connections: 50, load_factor: 0.05 },
            timeouts: Timeouts {
                start: Duration::from_secs(60),
                idle: Some(Duration::from_secs(900)),
                drain: Duration::from_secs(600),
                stop: Duration::from_secs(5),
                affinity: Duration::from_secs(10_800),
            },
            health: Health { path: None, interval: Duration::from_secs(5) },
            client: Client { ipv4: 32, ipv6: 64, auto_promote: 16 },
            protect: Protect::default(),
            http: Http::default(),
            cookie: Cookie::default(),
        }]
    );
    assert_eq!(config.homing.control_socket, Path::new("/run/homing/control.sock"));
    assert_eq!(config.homing.state_dir, Path::new("/var/lib/homing"));
    assert_eq!(config.homing.run_dir, Path::new("/run/homing"));
    assert_eq!(config.homing.log_dir, Path::new("/var/log/homing"));
    assert_eq!(config.homing.pin_dir, Path::new("/sys/fs/bpf/homing"));
    assert_eq!(config.homing.kernel_path, KernelPath::Preferred);
    assert_eq!((config.homing.interfaces.len(), config.homing.bindings), (0, 131_072));
    assert_eq!(config.homing.output, Limits { size_max: 64 << 20, age_max: Duration::from_secs(7 * 86_400), keep: 5 });
}

#[test]
fn every_key_is_read() {
    let config = accepted(
        r#"
        [homing]
        control_socket = "run/c.sock"
        state_dir = "/s"
        run_dir = "run"
        log_dir = "logs"
        log_max_size = "1MiB"
        log_max_age = "36h"
        log_keep = 0
        access_log = "etc/access.log"
        access_log_format = "json"
        access_log_query = true
        traces = "http://localhost:4318"
        traces_one_in = 100
        pin_dir = "/sys/fs/bpf/other"
        cgroups = "off"
        kernel_path = "required"
        interfaces = ["eth0", "lo"]
        trusted_proxies = ["10.0.0.0/8", "fd00::1"]
        bindings = 1_000_000
        starts_at_once = 3
        [[app]]
        name = "a-1_b"
        listen = ["0.0.0.0:8080", "[::]:8080"]
        affinity = "cookie"
        command = ["sh", "--port", "{port}"]
        directory = "etc"
        user = "root"
        env = { R_MAX_VSIZE = "2GB" }
        workers = { min = 0, max = 1_024, max_connections = 5, load_factor = 0.5, memory_max = "2GiB", cpu_weight = 300 }
        timeouts = { start = "500ms", idle = "0s", drain = "0s", affinity = "2d", stop = "20s",
                     full = "0s", body = "9s", response = "0s", websocket_idle = "1h", websocket_read = "30m" }
        health = { path = "/health?deep=1", interval = "30s" }
        group = "root"
        umask = "077"
        no_new_privileges = false
        limits = { open_files = 4096, processes = 64, core = "100MiB" }
        stop_signal = "INT"
        protect = { allow = ["10.0.0.0/8", "fd00::7"], deny = ["10.1.0.0/16"], client_rate = 5, app_rate = 100, app_burst = 7 }
        http = { max_connections = 300, head_max = "8KiB", body_max = "2GB", client_rate = 20, client_burst = 60, queue = 7 }
        client = { ipv4_prefix = 24, ipv6_prefix = 0x30, auto_promote = 40 }
        cookie = { name = "__Host-id", secure = "always", same_site = "none", max_age = "30d", partitioned = true }
        [[app]]
        name = "b"
        listen = ["127.0.0.1:8081"]
        command = ["bin/sh"]
        "#,
    );
    assert_eq!(config.homing.control_socket, Path::new("/run/c.sock"));
    assert_eq!(config.homing.run_dir, Path::new("/run"));
    assert_eq!(config.homing.log_dir, Path::new("/logs"));
    assert_eq!(config.homing.output, Limits { size_max: 1 << 20, age_max: Duration::from_secs(36 * 3_600), keep: 0 });
    assert_eq!(config.homing.pin_dir, Path::new("/sys/fs/bpf/other"));
    let access_log = access::Settings { path: "/etc/access.log".into(), format: access::Format::Json, query: true };
    assert_eq!(config.homing.access_log, Some(access_log));
    let traces = spans::Settings { endpoint: "http://localhost:4318/v1/traces".to_owned(), one_in: 100 };
    assert_eq!(config.homing.traces, Some(traces));
    assert_eq!(config.homing.cgroups, Cgroups::Off);
    assert_eq!(config.homing.kernel_path, KernelPath::Required);
    assert_eq!(config.homing.interfaces, ["eth0", "lo"]);
    assert_eq!(config.homing.bindings, 1_000_000);
    assert_eq!(config.homing.trusted_proxies, ["10.0.0.0/8", "fd00::1/128"].map(|net| net.parse().expect("a prefix")));
    let app = &config.apps[0];
    assert_eq!((app.name.as_str(), app.listen.len(), app.affinity), ("a-1_b", 2, Affinity::Cookie));
    assert_eq!((app.directory.as_path(), app.user.as_deref()), (Path::new("/etc"), Some("root")));
    assert_eq!(app.env, BTreeMap::from([("R_MAX_VSIZE".to_owned(), "2GB".to_owned())]));
    assert_eq!(app.workers, Workers { min: 0, max: 1024, max_connections: 5, load_factor: 0.5 });
    let Timeouts { start, idle, drain, stop, affinity } = app.timeouts;
    assert_eq!((start.as_millis(), idle, drain.as_millis(), affinity.as_secs()), (500, None, 0, 172_800));
    assert_eq!((app.health.interval.as_secs(), config.homing.starts_at_once), (30, 3));
    assert_eq!(stop.as_secs(), 20);
    assert_eq!(
        app.isolation,
        Isolation {
            group: Some("root".to_owned()),
            umask: 0o077,
            limits: isolation::Limits { open_files: Some(4096), processes: Some(64), core: Some(100 << 20) },
            no_new_privileges: false,
            stop_signal: StopSignal::Int,
            memory_max: Some(2 << 30),
            cpu_weight: Some(300),
        }
    );
    assert_eq!(app.health.path.as_deref(), Some("/health?deep=1"));
    assert_eq!(
        app.protect,
        Protect {
            allow: ["10.0.0.0/8", "fd00::7/128"].map(|net| net.parse().unwrap()).to_vec(),
            deny: vec!["10.1.0.0/16".parse().unwrap()],
            client: Some(Rate { per_second: 5, burst: 50 }),
            app: Some(Rate { per_second: 100, burst: 7 }),
        }
    );
    assert_eq!(
        app.http,
        Http {
            max_connections: Some(300),
            head_max: Some(8 << 10),
            body_max: Some(2_000_000_000),
            rate: Some(Rate { per_second: 20, burst: 60 }),
            queue: 7,
            error_page: None,
            full: Duration::ZERO,
            body: Some(Duration::from_secs(9)),
            response: None,
            websocket_idle: Some(Duration::from_secs(3_600)),
            websocket_read: Some(Duration::from_secs(1_800)),
        }
    );
    assert_eq!(app.client, Client { ipv4: 24, ipv6: 48, auto_promote: 40 });
    let cookie = Cookie {
        name: "__Host-id".to_owned(),
        secure: Secure::Always,
        path: "/".to_owned(),
        same_site: SameSite::None,
        max_age: Some(Duration::from_secs(30 * 24 * 60 * 60)),
        partitioned: true,
    };
    assert_eq!(app.cookie, cookie);
    assert_eq!(config.apps[1].name, "b");
}

#[test]
fn apps_share_an_address_where_hosts_or_paths_tell_them_apart() {
    let other =
        |lines: &str| format!("[[app]]\nname = \"b\"\nlisten = [\"127.0.0.1:8080\"]\ncommand = [\"sh\"]\n{lines}\n");
    for (first, second) in [
        ("", "hosts = [\"b.example.org\"]"),
        ("", "path = \"/b\""),
        ("path = \"/a\"", "path = \"/a/b\""),
        ("hosts = [\"a.example.org\"]", "hosts = [\"*.example.org\"]"),
        ("hosts = [\"a\", \"b\"]", "hosts = [\"b\"]\npath = \"/b\""),
    ] {
        let config = accepted(&format!("{APP}{first}\n{}", other(second)));
        for app in &config.apps {
            assert_eq!(app.http_only(), Some(HttpOnly::App), "{first} {second}");
            assert!(!app.has_kernel_path());
        }
    }
    let config = accepted(&format!(
        "{APP}hosts = [\"A.example.org.\", \"*.B\", \"[0::1]\"]\npath = \"/x/y/\"\nstrip_path = false"
    ));
    let app = &config.apps[0];
    let hosts = ["a.example.org", "[::1]"].map(|name| Host::Exact(name.to_owned()));
    let hosts = [hosts[0].clone(), Host::Below("b".to_owned()), hosts[1].clone()].to_vec();
    assert_eq!(app.route, Route { hosts, path: "/x/y".to_owned(), strip_path: false });
    assert_eq!((app.cookie.path.as_str(), app.http_only()), ("/x/y", Some(HttpOnly::Host)));
}

#[test]
fn all_errors_are_told_at_once_in_the_order_of_the_file_each_with_its_line_marked() {
    let text = "[homing]\nkernel_path = \"maybe\"\n\n[[app]]\nname = \"Sales\"\ncomand = [\"sh\"]\nlisten = [\":8080\"]\n\
                \n[app.timeouts]\nstart = 60\n";
    let errors = parse(text, "/etc/homing.toml", Path::new("/")).expect_err("it has errors");
    let expected = "\
/etc/homing.toml:2:15: `kernel_path` must be \"required\", \"preferred\" or \"off\", not `maybe`
  2 | kernel_path = \"maybe\"
    |               ^^^^^^^
/etc/homing.toml:4:1: [[app]] has no `command`; add what starts a worker, such as command = [\"uvicorn\", \"app:app\", \
\"--port\", \"{port}\"]
  4 | [[app]]
    | ^^^^^^^
/etc/homing.toml:5:8: `name` must be 1 to 64 characters of a-z, 0-9, _ and -, not `Sales`
  5 | name = \"Sales\"
    |        ^^^^^^^
/etc/homing.toml:6:1: unknown key `comand` in [[app]]; did you mean `command`?
  6 | comand = [\"sh\"]
    | ^^^^^^
/etc/homing.toml:7:11: `:8080` names no address; write \"0.0.0.0:8080\" for IPv4, \"[::]:8080\" for IPv6, or both
  7 | listen = [\":8080\"]
    |           ^^^^^^^
/etc/homing.toml:10:9: `start` needs a unit; write \"60s\" for seconds (or ms, m, h, d)
  10 | start = 60
     |         ^^";
    assert_eq!(errors.to_string(), expected);
}

#[test]
fn a_control_socket_too_long_for_the_kernel_is_refused() {
    let text = format!("[homing]\ncontrol_socket = \"/{}\"\n{APP}", "x".repeat(107));
    assert_eq!(
        complaints(&text),
        [
            "homing.toml:2:18: `control_socket` is 108 bytes long with its directory, and a unix socket's path has at most 107; \
          choose a shorter one"
        ]
    );
}

#[test]
fn what_workers_listen_on_is_read_off_the_placeholders() {
    for (lines, expected) in [
        ("", ListensOn::Port),
        ("env.A = \"{port}\"", ListensOn::Port),
        ("env.A = \"unix:{socket}\"", ListensOn::Socket),
        ("env.A = \"{fd}\"", ListensOn::Passed),
        ("pass_socket = true", ListensOn::Passed),
        ("pass_socket = false", ListensOn::Port),
        ("pass_socket = true\nenv.A = \"{fd}\"", ListensOn::Passed),
    ] {
        assert_eq!(accepted(&format!("{APP}{lines}\n")).apps[0].listens_on, expected, "{lines}");
    }
    let command = |word: &str| accepted(&APP.replace("[\"sh\"]", &format!("[\"sh\", \"--x={word}\"]")));
    assert_eq!(command("{socket}").apps[0].listens_on, ListensOn::Socket);
    assert_eq!(command("{fd}").apps[0].listens_on, ListensOn::Passed);
}

#[test]
fn sockets_of_workers_whose_paths_would_be_too_long_are_refused() {
    let text = |run_dir: usize| {
        format!("[homing]\nrun_dir = \"/{}\"\n{APP}env.A = \"{{socket}}\"\nworkers.max = 101\n", "x".repeat(run_dir))
    };
    // /…/sales-100-01234567/socket
    accepted(&text(107 - 1 - 26));
    let told = complaints(&text(107 - 1 - 25));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("homing.toml:6:11: the workers' sockets would be called like /xxx"), "{told:?}");
    assert!(
        told[0].ends_with(
            "/sales-100-00000000/socket: 108 bytes, and a unix socket's path has at most 107; choose a homing.run_dir, \
             or a `name`, that is 1 bytes shorter"
        ),
        "{told:?}"
    );
    // Nobody needs it.
    accepted(&text(200).replace("{socket}", "{port}"));
}

#[test]
fn relative_paths_start_from_the_directory_of_the_file() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(folder.path().join("app")).expect("created");
    let file = folder.path().join("homing.toml");
    fs::write(&file, format!("[homing]\nstate_dir = \"state\"\n{APP}directory = \"app\"\n")).expect("written");
    let config = load(&file).expect("it is right");
    assert_eq!(config.homing.state_dir, folder.path().join("state"));
    assert_eq!(config.apps[0].directory, folder.path().join("app"));
}

#[test]
fn an_access_log_or_traces_without_a_place_are_told() {
    for (line, expected) in [
        (
            "access_log = \"/nowhere/a.log\"",
            "`access_log` must be a file in a directory that exists, not `/nowhere/a.log`",
        ),
        (
            "traces = \"127.0.0.1:4318\"",
            "`traces` must be where an OpenTelemetry collector takes OTLP over HTTP, like http://127.0.0.1:4318, not `127.0.0.1:4318`",
        ),
        (
            "traces = \"https://collector.test\"",
            "`traces` must begin with http://; have a collector on this machine, which goes on by TLS",
        ),
        ("traces_one_in = 10", "`traces_one_in` without `traces` traces nothing; add traces, or remove it"),
        ("access_log = \"/\"", "`access_log` must be a file in a directory that exists, not `/`"),
        (
            "access_log_query = true",
            "`access_log_query` without `access_log` writes nothing; add access_log, or remove it",
        ),
        (
            "access_log = \"/a\"\naccess_log_format = \"clf\"",
            "`access_log_format` must be \"combined\" or \"json\", not `clf`",
        ),
    ] {
        let text = format!("[homing]\n{line}\n{APP}");
        let errors = parse(&text, "homing.toml", Path::new("/")).expect_err(line).to_string();
        assert!(errors.contains(expected), "{line}: {errors}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_one_complaint() {
    let told = |path: &Path| load(path).expect_err("it cannot be read").to_string();
    assert_eq!(
        told(Path::new("/nowhere/homing.toml")),
        "/nowhere/homing.toml: cannot be read: No such file or directory (os error 2); give another file with --config"
    );
    assert!(told(Path::new("/etc")).starts_with("/etc: cannot be read: "), "{}", told(Path::new("/etc")));
    assert_eq!(
        told(Path::new("/dev/zero")),
        "/dev/zero: cannot be read: it has more than 1048576 bytes; give another file with --config"
    );
}

#[test]
fn a_file_of_another_kind_is_refused_soon_and_without_a_flood() {
    let errors = parse(&"= [ {\n".repeat(100_000), "log", Path::new("/")).expect_err("it is no configuration");
    assert!(errors.0.len() <= TOLD_MAX + 1, "{}", errors.0.len());
    let errors = parse(&"{\"a\": 1}\n".repeat(50_000), "log", Path::new("/")).expect_err("it is no configuration");
    assert_eq!(errors.0.len(), TOLD_MAX + 1);
    let last = errors.0.last().map(ToString::to_string);
    assert_eq!(last.as_deref(), Some("log: there are more errors than these; correct them first"));
}

/// Pieces of configuration, right and wrong, to be strewn together.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "[homing]\n",
        "[[app]]\n",
        "[app.workers]\n",
        "[app.timeouts]\n",
        "[app]\n",
        "name = \"a\"\n",
        "listen = [\"[::]:1\"",
        "]\n",
        "command = [\"sh\", 1, {a=1}]\n",
        "min = 9\n",
        "max = 0x7fffffffffffffff\n",
        "start = \"",
        "9999999999999d\"\n",
        "env = { A = '{port}', é = \"\u{7}\" }\n",
        "\"",
        "'''",
        "{",
        "}",
        "é\u{301}",
        "\0",
        "\r\n",
        "=",
        ".",
        "#",
        "1979-05-27\n",
        "user = \"\\u0000\"\n",
        "directory = \"\\u0000\"\n",
        "health = { path = \"/é\" }\n",
        "cookie.name = \"__hÖst-\"\n",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in prop_oneof![any::<String>(), pieces()]) {
        if let Err(errors) = parse(&text, "homing.toml", Path::new("/")) {
            prop_assert!(!errors.0.is_empty());
            for problem in &errors.0 {
                let Some(place) = &problem.place else { continue };
                prop_assert!(place.line <= text.matches('\n').count() + 1);
                prop_assert!(place.column <= place.text.chars().count() + 2, "{place:?}");
            }
            prop_assert!(!errors.to_string().contains('\0'));
        }
    }
}
