//! Everything that a configuration can get wrong, each with the complaint that it earns.

use super::tests::{APP, accepted, complaints};

/// Lines put after [`APP`] (so the first is line 5), and the complaint that each earns.
const WRONG: &[(&str, &str)] = &[
    // Unknown keys.
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
    ("workers.max_connections = 0", "5:27: `max_connections` must be from 1 to 1000000"),
    ("workers.load_factor = 5", "5:23: `load_factor` must be a number from 0 to 1, such as 0.05"),
    ("workers.load_factor = \"5%\"", "5:23: `load_factor` must be a number from 0 to 1, such as 0.05"),
    ("timeouts.idle = 15", "5:17: `idle` needs a unit; write \"15s\" for seconds (or ms, m, h, d)"),
    ("health.interval = \"1ms\"", "5:19: `interval` must be from 1s to 1d, not `1ms`"),
    (
        "listen_udp = [\"10.0.0.1:8080\"]",
        "5:14: `listen_udp` needs `backends` that all take `l2`, `ipip` or `gue`, and no `command`: workers and the HTTP path \
         speak TCP; remove the line, or change those",
    ),
    // Types.
    ("affinity = 1", "5:12: `affinity` must be a string in quotes, not a whole number"),
    ("affinity = \"sticky\"", "5:12: `affinity` must be \"ip\", \"cookie\" or \"auto\", not `sticky`"),
    ("env = [\"A=1\"]", "5:7: `env` must be a table, not a list"),
    ("env.A = 1", "5:9: `A` must be a string in quotes, not a whole number"),
    ("env.A = \"\\u0000\"", "5:9: `A` cannot contain a NUL character"),
    ("directory = \"\\u0000\"", "5:13: `directory` must not contain a NUL character"),
    ("env.PORT = \"1\"", "5:5: `PORT` is set by homing for each worker; remove it from `env`"),
    ("env.LISTEN_PID = \"1\"", "5:5: `LISTEN_PID` is set by homing for each worker; remove it from `env`"),
    (
        "env = { A = \"{port}\", B = \"{socket}\" }",
        "5:27: `{socket}` and `{port}` exclude each other: a worker gets one of them; remove one",
    ),
    (
        "env.A = \"{port}\"\npass_socket = true",
        "6:15: `pass_socket` and `{port}` exclude each other: a worker gets one of them; remove one",
    ),
    ("pass_socket = \"yes\"", "5:15: `pass_socket` must be true or false, not a string"),
    (
        "affinity = \"ip\"\nenv.A = \"{socket}\"",
        "5:12: \"ip\" is kept by the kernel, which hands connections to TCP sockets alone, and these workers listen on unix \
         sockets; use `{port}` in place of `{socket}`, or affinity = \"auto\" or \"cookie\"",
    ),
    ("env.\"A=B\" = \"\"", "5:5: `A=B` cannot be the name of an environment variable"),
    // Numbers.
    ("workers.max = 0", "5:15: `max` must be from 1 to 1024"),
    ("workers.max = 1025", "5:15: `max` must be from 1 to 1024"),
    ("workers.min = -1", "5:15: `min` must be from 0 to 1024"),
    ("workers.max = 99999999999999999999999999", "5:15: `max` must be from 1 to 1024"),
    ("workers.max = \"4\"", "5:15: `max` must be a whole number from 1 to 1024, not a string"),
    ("workers = { min = 3, max = 2 }", "5:28: `max` is 2, below `min`, 3; raise one or lower the other"),
    ("workers.min = 5", "5:15: `min` is 5, above `max`, which is 4 unless given; add max = 5 or more"),
    ("workers.memory_max = \"2\"", "5:22: `memory_max` needs a unit; write \"2MiB\" (or GiB, TiB, KiB, B)"),
    ("workers.memory_max = \"1MiB\"", "5:22: `memory_max` must be from 4 MiB to 64 TiB, not `1MiB`"),
    (
        "workers.memory_max = \"2G\"",
        "5:22: `memory_max` must be a whole number and a unit (MiB, GiB, TiB; MB, GB, TB), such as \"512MiB\" or \"2GiB\", not `2G`",
    ),
    ("workers.memory_max = 2", "5:22: `memory_max` must be a string in quotes, not a whole number"),
    ("workers.cpu_weight = 0", "5:22: `cpu_weight` must be from 1 to 10000"),
    ("limits.open_files = 3", "5:21: `open_files` must be from 16 to 1048576"),
    ("limits.processes = 0", "5:20: `processes` must be from 1 to 4194304"),
    ("limits.core = \"1\"", "5:15: `core` needs a unit; write \"1MiB\" (or GiB, TiB, KiB, B)"),
    ("limits.cores = \"0\"", "5:8: unknown key `cores` in limits; did you mean `core`?"),
    (
        "umask = \"rwx\"",
        "5:9: `umask` must be three octal digits, with a leading 0 or without, such as \"0027\", not `rwx`",
    ),
    (
        "umask = \"1777\"",
        "5:9: `umask` must be three octal digits, with a leading 0 or without, such as \"0027\", not `1777`",
    ),
    ("umask = 27", "5:9: `umask` must be a string in quotes, not a whole number"),
    ("no_new_privileges = \"no\"", "5:21: `no_new_privileges` must be true or false, not a string"),
    ("stop_signal = \"KILL\"", "5:15: `stop_signal` must be \"TERM\", \"INT\", \"QUIT\" or \"HUP\", not `KILL`"),
    (
        "group = \"shiny-of-nobody\"",
        "5:9: `group` `shiny-of-nobody` is not on this machine; create that group, or correct the name",
    ),
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
    ("http.body_max = \"10\"", "5:17: `body_max` needs a unit; write \"10MiB\" (or KiB, GiB, KB, MB, GB)"),
    ("http.head_max = \"64KiB\"", "5:17: `head_max` must be from 1KiB to 32KiB, not `64KiB`"),
    ("http.queue = 5_000", "5:14: `queue` must be from 0 to 4096"),
    ("http.bodymax = \"1MiB\"", "5:6: unknown key `bodymax` in http; did you mean `body_max`?"),
    (
        "http.client_burst = 5",
        "5:21: `client_burst` without `client_rate` limits nothing; add client_rate, or remove it",
    ),
    ("http.error_page = \"\"", "5:19: `error_page` must not be empty; give a path, or remove the line"),
    ("timeouts.full = \"2h\"", "5:17: `full` must be from 0s to 1h, not `2h`"),
    ("client.auto_promote = 0", "5:23: `auto_promote` must be from 1 to 65535"),
    ("client.ipv6_prefix = 129", "5:22: `ipv6_prefix` must be from 0 to 128"),
    // Durations.
    ("timeouts.start = \"60\"", "5:18: `start` needs a unit; write \"60s\" for seconds (or ms, m, h, d)"),
    (
        "timeouts.start = \"soon\"",
        "5:18: `start` must be a whole number and a unit (ms, s, m, h, d), such as \"60s\", \"15m\" or \"3h\", not `soon`",
    ),
    ("timeouts.start = \"0s\"", "5:18: `start` must be from 100ms to 1d, not `0s`"),
    ("timeouts.stop = \"2h\"", "5:17: `stop` must be from 0s to 1h, not `2h`"),
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
    (
        "proxy_protocol = true",
        "5:18: `proxy_protocol` is for trusted proxies, and there are none; add homing.trusted_proxies, or remove it",
    ),
    (
        "send_proxy_protocol = \"v1\"\nbackends = [{ address = \"10.0.0.1:8080\", forward = \"l2\" }]",
        "5:23: only the HTTP path writes `send_proxy_protocol`, and app `sales` has backends that are sent packets; use forward = \"http\" for them, or an address of its own without `send_proxy_protocol`",
    ),
    ("send_proxy_protocol = \"3\"", "5:23: `send_proxy_protocol` must be \"v1\" or \"v2\", not `3`"),
    ("tls = true", "5:7: `tls` must be a table, not true or false"),
    ("cookie.secure = true", "5:17: `secure` must be a string in quotes, not true or false"),
    ("cookie.same_site = \"no\"", "5:20: `same_site` must be \"strict\", \"lax\" or \"none\", not `no`"),
    (
        "cookie = { same_site = \"none\", secure = \"never\" }",
        "5:24: browsers keep a cookie with same_site = \"none\" only when it is secure; drop secure = \"never\"",
    ),
    (
        "cookie = { partitioned = true, secure = \"never\" }",
        "5:26: browsers keep a partitioned cookie only when it is secure; drop secure = \"never\"",
    ),
    ("cookie.max_age = \"500d\"", "5:18: `max_age` must be from 1s to 400d, not `500d`"),
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
        "7:11: `127.0.0.1:8080` is already an address of app `sales`; choose another, or tell the apps apart by `hosts` or `path`",
    ),
    (
        "path = \"/a\"\n[[app]]\nname = \"b\"\nlisten = [\"127.0.0.1:8080\"]\ncommand = [\"sh\"]\npath = \"/a/\"",
        "8:11: apps `sales` and `b` both take any host with path `/a` on `127.0.0.1:8080`; change `hosts` or `path` of one",
    ),
    (
        "hosts = [\"a\", \"b\"]\n[[app]]\nname = \"b\"\nlisten = [\"127.0.0.1:8080\"]\ncommand = [\"sh\"]\nhosts = [\"B.\"]",
        "8:11: apps `sales` and `b` both take host `b` with path `/` on `127.0.0.1:8080`; change `hosts` or `path` of one",
    ),
    (
        "backends = [{ address = \"10.0.0.1:8080\", forward = \"l2\" }]\n[[app]]\nname = \"b\"\nlisten = [\"127.0.0.1:8080\"]\ncommand = [\"sh\"]\nhosts = [\"b\"]",
        "10:9: only the HTTP path tells requests apart (`b` is on 127.0.0.1:8080, too), and app `sales` has backends that are sent packets; use forward = \"http\" for them, or an address of its own without `hosts` and `path`",
    ),
    (
        "backends = [{ address = \"10.0.0.1:8080\", forward = \"l2\" }]\npath = \"/a\"",
        "6:8: only the HTTP path tells requests apart, and app `sales` has backends that are sent packets; use forward = \"http\" for them, or an address of its own without `hosts` and `path`",
    ),
    ("hosts = [\"https://a\"]", "5:10: `https://a` must be a host's name alone, without scheme, port and path"),
    ("hosts = [\"a:80\"]", "5:10: `a:80` must be a host's name alone, without scheme, port and path"),
    (
        "hosts = [\"*\"]",
        "5:10: `*` may have its `*` as the first label only, as in `*.example.org`; for any host give no `hosts`",
    ),
    ("hosts = [\"a..b\"]", "5:10: `a..b` must be a host's name, such as `sales.example.org` or `*.example.org`"),
    ("hosts = [\"[::g]\"]", "5:10: `[::g]` has no IPv6 address in its brackets"),
    ("hosts = [\"bücher.example\"]", "5:10: `bücher.example` must be written as browsers send it, in Punycode: xn--…"),
    ("hosts = [\"a\", \"A\"]", "5:15: `a` is given twice; remove one"),
    (
        "path = \"sales\"",
        "5:8: `path` must be \"/\" and segments of letters, digits and -._~, such as \"/sales\", not `sales`",
    ),
    (
        "path = \"/a%20b\"",
        "5:8: `path` must be \"/\" and segments of letters, digits and -._~, such as \"/sales\", not `/a%20b`",
    ),
    ("path = \"/a/../b\"", "5:8: `path` must have no empty segment and none of dots, as `/a/../b` does"),
    ("strip_path = false", "5:14: `strip_path` is of no use without a `path`; add one, or remove it"),
    (
        "path = \"/a\"\ncookie = { name = \"__Host-x\", secure = \"always\" }",
        "6:19: browsers keep a cookie named `__Host-…` only with the path `/`, not `/a`; rename it",
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

#[test]
fn more_than_homing_can_hold_is_told_with_the_bound() {
    let listed = |count: usize, text: fn(usize) -> String| (0..count).map(text).collect::<Vec<_>>().join(", ");
    let prefixes = listed(16_385, |n| format!("\"10.{}.{}.1\"", n / 256, n % 256));
    let backends = listed(1_025, |n| format!("{{ address = \"10.1.{}.{}:80\" }}", n / 256, n % 256));
    for (lines, expected) in [
        (format!("protect.deny = [{prefixes}]"), "`deny` has 16385 prefixes, 16384 at most"),
        (format!("backends = [{backends}]"), "`backends` has 1025 entries, 1024 at most"),
    ] {
        let complaints = complaints(&format!("{APP}{lines}\n"));
        assert!(complaints.iter().any(|complaint| complaint.ends_with(expected)), "{expected}: {complaints:?}");
    }
}

#[test]
fn an_error_page_that_is_too_large_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    std::fs::write(&page, vec![b' '; 1 << 20]).unwrap();
    let complaints = complaints(&format!("{APP}http.error_page = {page:?}\n"));
    assert!(
        complaints[0].contains("page.html` is larger than ") && complaints[0].ends_with("KiB; make it smaller"),
        "{complaints:?}"
    );
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
    (
        "[\"sh\", \"${socket}\"]",
        "18: `${socket}` would become `$/run/…`; write `{socket}`, or `$HOMING_SOCKET` for a shell",
    ),
    ("[\"sh\", \"{FD}\"]", "18: `{FD}` stays as it is; write `{fd}` for the worker's descriptor"),
    (
        "[\"sh\", \"{port}\", \"{fd}\"]",
        "28: `{fd}` and `{port}` exclude each other: a worker gets one of them; remove one",
    ),
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
        "homing.metrik = \"127.0.0.1:9180\"\nhoming.interfaces = [\"eth0\", \"eth0\", \"a b\"]\n[[apps]]",
        &[
            "1:1: no [[app]] is given; add one with `name`, `listen` and `command`",
            "1:8: unknown key `metrik` in homing; did you mean `metrics`?",
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
