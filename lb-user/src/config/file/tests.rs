//! Scenarios of `file`.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::{Affinity, App, Client, Cookie, Health, KernelPath, Protect, Rate, Secure, Timeouts, Workers};

/// What every app needs, in three lines.
const APP: &str = "[[app]]\nname = \"sales\"\nlisten = [\"127.0.0.1:8080\"]\ncommand = [\"sh\"]\n";

/// All complaints about a text, as `homing check` prints them, but without the quoted lines.
fn complaints(text: &str) -> Vec<String> {
    let errors = parse(text, "homing.toml", Path::new("/")).expect_err("it has errors");
    // The tables below need no change with each version.
    let version = concat!("homing (", env!("CARGO_PKG_VERSION"), ")");
    let first_line =
        |problem: &Problem| problem.to_string().lines().next().unwrap_or_default().replace(version, "homing (0.1.0)");
    errors.0.iter().map(first_line).collect()
}

fn accepted(text: &str) -> Config {
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
            affinity: Affinity::Auto,
            command: vec!["sh".to_owned()],
            backends: Vec::new(),
            directory: PathBuf::from("/"),
            user: None,
            env: BTreeMap::new(),
            workers: Workers { min: 1, max: 4 },
            timeouts: Timeouts {
                start: Duration::from_secs(60),
                drain: Duration::from_secs(600),
                affinity: Duration::from_secs(10_800),
            },
            health: Health { path: None },
            client: Client { ipv4: 32, ipv6: 64, auto_promote: 16 },
            protect: Protect::default(),
            cookie: Cookie { name: "homing".to_owned(), secure: Secure::Auto },
        }]
    );
    assert_eq!(config.homing.control_socket, Path::new("/run/homing/control.sock"));
    assert_eq!(config.homing.state_dir, Path::new("/var/lib/homing"));
    assert_eq!(config.homing.log_dir, Path::new("/var/log/homing"));
    assert_eq!(config.homing.pin_dir, Path::new("/sys/fs/bpf/homing"));
    assert_eq!(config.homing.kernel_path, KernelPath::Preferred);
    assert_eq!((config.homing.interfaces.len(), config.homing.bindings), (0, 131_072));
}

#[test]
fn every_key_is_read() {
    let config = accepted(
        r#"
        [homing]
        control_socket = "run/c.sock"
        state_dir = "/s"
        log_dir = "logs"
        pin_dir = "/sys/fs/bpf/other"
        kernel_path = "required"
        interfaces = ["eth0", "lo"]
        bindings = 1_000_000
        [[app]]
        name = "a-1_b"
        listen = ["0.0.0.0:8080", "[::]:8080"]
        affinity = "cookie"
        command = ["sh", "--port", "{port}"]
        directory = "etc"
        user = "root"
        env = { R_MAX_VSIZE = "2GB" }
        workers = { min = 0, max = 1_024 }
        timeouts = { start = "500ms", drain = "0s", affinity = "2d" }
        health.path = "/health?deep=1"
        protect = { allow = ["10.0.0.0/8", "fd00::7"], deny = ["10.1.0.0/16"], client_rate = 5, app_rate = 100, app_burst = 7 }
        client = { ipv4_prefix = 24, ipv6_prefix = 0x30, auto_promote = 40 }
        cookie = { name = "__Host-id", secure = "always" }
        [[app]]
        name = "b"
        listen = ["127.0.0.1:8081"]
        command = ["bin/sh"]
        "#,
    );
    assert_eq!(config.homing.control_socket, Path::new("/run/c.sock"));
    assert_eq!(config.homing.log_dir, Path::new("/logs"));
    assert_eq!(config.homing.pin_dir, Path::new("/sys/fs/bpf/other"));
    assert_eq!(config.homing.kernel_path, KernelPath::Required);
    assert_eq!(config.homing.interfaces, ["eth0", "lo"]);
    assert_eq!(config.homing.bindings, 1_000_000);
    let app = &config.apps[0];
    assert_eq!((app.name.as_str(), app.listen.len(), app.affinity), ("a-1_b", 2, Affinity::Cookie));
    assert_eq!((app.directory.as_path(), app.user.as_deref()), (Path::new("/etc"), Some("root")));
    assert_eq!(app.env, BTreeMap::from([("R_MAX_VSIZE".to_owned(), "2GB".to_owned())]));
    assert_eq!(app.workers, Workers { min: 0, max: 1024 });
    let Timeouts { start, drain, affinity } = app.timeouts;
    assert_eq!((start.as_millis(), drain.as_millis(), affinity.as_secs()), (500, 0, 172_800));
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
    assert_eq!(app.client, Client { ipv4: 24, ipv6: 48, auto_promote: 40 });
    assert_eq!(app.cookie, Cookie { name: "__Host-id".to_owned(), secure: Secure::Always });
    assert_eq!(config.apps[1].name, "b");
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

/// Lines put after [`APP`] (so the first is line 5), and the complaint that each earns.
const WRONG: &[(&str, &str)] = &[
    // Unknown and unsupported keys.
    ("afinity = \"ip\"", "5:1: unknown key `afinity` in [[app]]; did you mean `affinity`?"),
    ("client.zzz = 1", "5:8: unknown key `zzz` in client; known are `ipv4_prefix`, `ipv6_prefix`, `auto_promote`"),
    (
        "backends = 5",
        "5:12: `backends` must be a list of tables, not a whole number; write backends = [{ address = \"10.0.0.11:8080\", forward = \"http\" }]",
    ),
    (
        "backends = [5]",
        "5:13: a backend must be a table, not a whole number; write backends = [{ address = \"10.0.0.11:8080\", forward = \"http\" }]",
    ),
    (
        "backends = [{ forward = \"l2\" }]",
        "5:13: a backend has no `address`; add one, such as address = \"10.0.0.11:8080\"",
    ),
    (
        "backends = [{ address = \"there:80\" }]",
        "5:25: `address` must be an IP address and a port, such as \"10.0.0.11:8080\" or \"[fd00::11]:8080\"",
    ),
    (
        "backends = [{ address = \"0.0.0.0:80\" }]",
        "5:25: `address` 0.0.0.0:80 is no address of one host and port; give the backend's own",
    ),
    (
        "backends = [{ address = \"10.0.0.1:80\" }, { address = \"10.0.0.1:80\" }]",
        "5:42: backend 10.0.0.1:80 is given twice; remove one",
    ),
    (
        "backends = [{ address = \"10.0.0.1:81\", forward = \"l2\" }]",
        "5:25: port 81 must be that of `listen`, 8080: `l2` forwards packets as they are; correct it, or use forward = \"http\"",
    ),
    (
        "backends = [{ address = \"10.0.0.1:80\", forward = \"nat\" }]",
        "5:50: `forward` must be \"http\", \"l2\", \"ipip\" or \"gue\", not `nat`",
    ),
    ("backends = [{ address = \"10.0.0.1:80\", weight = 0 }]", "5:49: `weight` must be from 1 to 100"),
    (
        "workers.memory_max = \"2GiB\"",
        "5:9: `memory_max` is not supported by this version of homing (0.1.0); remove the line",
    ),
    (
        "workers.max_connections = 50",
        "5:9: `max_connections` is not supported by this version of homing (0.1.0); remove the line",
    ),
    (
        "workers.load_factor = 0.05",
        "5:9: `load_factor` is not supported by this version of homing (0.1.0); remove the line",
    ),
    ("timeouts.idle = \"15m\"", "5:10: `idle` is not supported by this version of homing (0.1.0); remove the line"),
    ("health.interval = \"5s\"", "5:8: `interval` is not supported by this version of homing (0.1.0); remove the line"),
    // Types.
    ("affinity = 1", "5:12: `affinity` must be a string in quotes, not a whole number"),
    ("affinity = \"sticky\"", "5:12: `affinity` must be \"ip\", \"cookie\" or \"auto\", not `sticky`"),
    ("env = [\"A=1\"]", "5:7: `env` must be a table, not a list"),
    ("env.A = 1", "5:9: `A` must be a string in quotes, not a whole number"),
    ("env.PORT = \"1\"", "5:5: `PORT` is set by homing for each worker; remove it from `env`"),
    ("env.A = \"x{port}\"", "5:9: `{port}` is put into `command` only; a worker finds its port in PORT"),
    ("env.\"A=B\" = \"\"", "5:5: `A=B` cannot be the name of an environment variable"),
    // Numbers.
    ("workers.max = 0", "5:15: `max` must be from 1 to 1024"),
    ("workers.max = 1025", "5:15: `max` must be from 1 to 1024"),
    ("workers.min = -1", "5:15: `min` must be from 0 to 1024"),
    ("workers.max = 99999999999999999999999999", "5:15: `max` must be from 1 to 1024"),
    ("workers.max = \"4\"", "5:15: `max` must be a whole number from 1 to 1024, not a string"),
    ("workers = { min = 3, max = 2 }", "5:28: `max` is 2, below `min`, 3; raise one or lower the other"),
    ("workers.min = 5", "5:15: `min` is 5, above `max`, which is 4 unless given; add max = 5 or more"),
    ("client.ipv4_prefix = 33", "5:22: `ipv4_prefix` must be from 0 to 32"),
    ("protect.allow = [\"10.0.0.1/8\"]", "5:18: 10.0.0.1/8 has an address within the prefix; write 10.0.0.0/8"),
    (
        "protect.deny = [\"example.org\"]",
        "5:17: `example.org` must be an address or a prefix, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32",
    ),
    (
        "protect = { allow = [\"10.0.0.0/8\"], deny = [\"10.0.0.0/8\"] }",
        "5:45: 10.0.0.0/8 is in `allow` and in `deny`; remove one",
    ),
    (
        "protect.client_burst = 5",
        "5:24: `client_burst` without `client_rate` limits nothing; add client_rate, or remove it",
    ),
    ("protect.app_rate = 0", "5:20: `app_rate` must be from 1 to 1000000"),
    ("client.auto_promote = 0", "5:23: `auto_promote` must be from 1 to 65535"),
    ("client.ipv6_prefix = 129", "5:22: `ipv6_prefix` must be from 0 to 128"),
    // Durations.
    ("timeouts.start = \"60\"", "5:18: `start` needs a unit; write \"60s\" for seconds (or ms, m, h, d)"),
    (
        "timeouts.start = \"soon\"",
        "5:18: `start` must be a whole number and a unit (ms, s, m, h, d), such as \"60s\", \"15m\" or \"3h\", not `soon`",
    ),
    ("timeouts.start = \"0s\"", "5:18: `start` must be from 100ms to 1d, not `0s`"),
    ("timeouts.affinity = \"31d\"", "5:21: `affinity` must be from 1s to 30d, not `31d`"),
    ("timeouts.drain = \"99999999999999999999d\"", "5:18: `drain` must be from 0s to 7d, not `99999999999999999999d`"),
    // Paths, users, checks, cookies.
    (
        "directory = \"/srv/nowhere\"",
        "5:13: `directory` `/srv/nowhere` cannot be used: No such file or directory (os error 2); create it, or correct the path",
    ),
    ("directory = \"/etc/passwd\"", "5:13: `directory` `/etc/passwd` is not a directory; correct it"),
    ("directory = \"~/app\"", "5:13: `directory` must be a full path: `~` is not expanded in `~/app`"),
    (
        "user = \"shiny-of-nobody\"",
        "5:8: `user` `shiny-of-nobody` is not on this machine; create that user, or correct the name",
    ),
    (
        "health.path = \"health\"",
        "5:15: `path` must be a path such as \"/\" or \"/health\", percent-encoded, not `health`",
    ),
    (
        "cookie.name = \"a b\"",
        "5:15: `name` must be 1 to 64 letters, digits or characters of !#$%&'*+-.^_`|~ (RFC 6265), not `a b`",
    ),
    (
        "cookie.name = \"__Host-x\"",
        "5:15: browsers keep a cookie named `__Host-…` only when it is secure; add secure = \"always\", or rename it",
    ),
    ("cookie.secure = true", "5:17: `secure` must be a string in quotes, not true or false"),
    // More apps.
    (
        "[[app]]\nname = \"sales\"\nlisten = [\"[::]:8080\"]\ncommand = [\"sh\"]",
        "6:8: there are two apps named `sales`; rename one",
    ),
    (
        "[[app]]\nname = \"b\"\nlisten = [\"0.0.0.0:8080\"]\ncommand = [\"sh\"]",
        "7:11: `0.0.0.0:8080` overlaps `127.0.0.1:8080` of app `sales`, so they cannot both be bound; choose another port, or remove one",
    ),
    (
        "[[app]]\nname = \"b\"\nlisten = [\"127.0.0.1:8080\"]\ncommand = [\"sh\"]",
        "7:11: `127.0.0.1:8080` is already an address of app `sales`; choose another",
    ),
    // Files that are no TOML.
    ("user = root", "5:8: not valid TOML: string values must be quoted, expected literal string"),
];

#[test]
fn each_mistake_earns_one_complaint_with_its_place_and_remedy() {
    for (lines, expected) in WRONG {
        assert_eq!(complaints(&format!("{APP}{lines}\n")), [format!("homing.toml:{expected}")], "for {lines}");
    }
}

/// Values of `listen`, and the complaint.
const WRONG_LISTEN: &[(&str, &str)] = &[
    ("\"0.0.0.0:8080\"", "10: `listen` must be a list of strings, not a string; write listen = [\"0.0.0.0:8080\"]"),
    ("[]", "10: `listen` is empty; write listen = [\"0.0.0.0:8080\"]"),
    ("[8080]", "11: `listen` must hold strings only, not a whole number; put it in quotes"),
    ("[\"8080\"]", "11: `8080` names no address; write \"0.0.0.0:8080\" for IPv4, \"[::]:8080\" for IPv6, or both"),
    ("[\"10.0.0.1\"]", "11: `10.0.0.1` has no port; write \"10.0.0.1:8080\" or another port"),
    ("[\"::1\"]", "11: `::1` has no port; write \"[::1]:8080\" or another port"),
    ("[\"1.2.3.4:0\"]", "11: `1.2.3.4:0` has port 0; give the port that clients connect to"),
    ("[\"[::ffff:1.2.3.4]:80\"]", "11: `[::ffff:1.2.3.4]:80` is an IPv4 address in disguise; write \"1.2.3.4:80\""),
    (
        "[\"localhost:80\"]",
        "11: `localhost:80` is no address and port; write one such as \"0.0.0.0:8080\" or \"[::]:8080\" (names are not looked up)",
    ),
    (
        "[\"[::]:80\", \"[::1]:80\"]",
        "22: `[::1]:80` overlaps `[::]:80` of this app, so they cannot both be bound; choose another port, or remove one",
    ),
];

#[test]
fn each_wrong_address_says_what_to_write() {
    for (value, expected) in WRONG_LISTEN {
        let text = format!("[[app]]\nname = \"a\"\nlisten = {value}\ncommand = [\"sh\"]\n");
        assert_eq!(complaints(&text), [format!("homing.toml:3:{expected}")], "for {value}");
    }
}

/// Values of `command`, and the complaint.
const WRONG_COMMAND: &[(&str, &str)] = &[
    (
        "\"sh\"",
        "11: `command` must be a list of strings, not a string; write command = [\"uvicorn\", \"app:app\", \"--port\", \"{port}\"]",
    ),
    ("[]", "11: `command` is empty; write command = [\"uvicorn\", \"app:app\", \"--port\", \"{port}\"]"),
    ("[\"\"]", "12: the program's name is empty; give a program"),
    ("[1, \"nothing\"]", "12: `command` must hold strings only, not a whole number; put it in quotes"),
    (
        "[\"nothing-of-nobody\"]",
        "12: command `nothing-of-nobody` was not found on PATH (/usr/bin:/bin); install it, or give its full path in `command`",
    ),
    ("[\"./nothing\"]", "12: command `/etc/./nothing` does not exist; install it, or correct `command`"),
    (
        "[\"./passwd\"]",
        "12: command `/etc/./passwd` is not an executable file; make it one (chmod +x /etc/./passwd), or correct `command`",
    ),
    ("[\"sh\", \"{socket}\"]", "18: `{socket}` is not supported by this version of homing (0.1.0); use `{port}`"),
    ("[\"sh\", \"{PORT}\"]", "18: `{PORT}` stays as it is; write `{port}` for the worker's port"),
    ("[\"sh\", \"${port}\"]", "18: `${port}` would become `$8080`; write `{port}`, or `$PORT` for a shell"),
];

#[test]
fn each_wrong_command_says_what_to_do() {
    for (value, expected) in WRONG_COMMAND {
        let text = format!(
            "[[app]]\nname = \"a\"\nlisten = [\"[::1]:1\"]\ncommand = {value}\ndirectory = \"/etc\"\nenv.PATH = \"/usr/bin:/bin\"\n"
        );
        assert_eq!(complaints(&text), [format!("homing.toml:4:{expected}")], "for {value}");
    }
    accepted(&APP.replace("[\"sh\"]", "[\"sh\", \"-c\", \"exec x --port ${PORT}\"]"));
}

/// Whole files.
const WRONG_FILE: &[(&str, &[&str])] = &[
    ("", &["1:1: no [[app]] is given; add one with `name`, `listen` and `command`"]),
    ("app = []", &["1:7: no [[app]] is given; add one with `name`, `listen` and `command`"]),
    ("[app]\nname = \"a\"", &["1:1: apps are a list; write [[app]], with two brackets"]),
    ("app = 1", &["1:7: `app` must be tables, not a whole number; write [[app]]"]),
    ("app = [1]", &["1:8: an app must be a table, not a whole number"]),
    (
        "[[app]]",
        &[
            "1:1: [[app]] has no `name`; add one, such as name = \"sales\"",
            "1:1: [[app]] has no `listen`; add the addresses for clients, such as listen = [\"0.0.0.0:8080\"]",
            "1:1: [[app]] has no `command`; add what starts a worker, such as command = [\"uvicorn\", \"app:app\", \"--port\", \"{port}\"]",
        ],
    ),
    (
        "homing.metrics = \"127.0.0.1:9180\"\nhoming.interfaces = [\"eth0\", \"eth0\", \"a b\"]\n[[apps]]",
        &[
            "1:1: no [[app]] is given; add one with `name`, `listen` and `command`",
            "1:8: `metrics` is not supported by this version of homing (0.1.0); remove the line",
            "2:30: `eth0` is given twice; remove one",
            "2:38: `a b` cannot be the name of an interface; see `ip link`",
            "3:3: unknown key `apps` in the file; did you mean `app`?",
        ],
    ),
    // Text that is no TOML hides what is missing, not what is wrong elsewhere.
    (
        "[[app]]\nname = sales\nlisten = [\"8080\"]\n",
        &[
            "2:8: not valid TOML: string values must be quoted, expected literal string",
            "3:11: `8080` names no address; write \"0.0.0.0:8080\" for IPv4, \"[::]:8080\" for IPv6, or both",
        ],
    ),
    (
        "[[app]]\nnam = \"a\"\nnam = \"b\"\n",
        &["2:1: unknown key `nam` in [[app]]; did you mean `name`?", "3:1: not valid TOML: duplicate key"],
    ),
];

#[test]
fn files_as_a_whole_are_judged_too() {
    for (text, expected) in WRONG_FILE {
        let expected: Vec<String> = expected.iter().map(|line| format!("homing.toml:{line}")).collect();
        assert_eq!(complaints(text), expected, "for {text}");
    }
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
