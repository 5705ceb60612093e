//! The `[homing]` table.

use std::path::{Path, PathBuf};

use http::Uri;

use super::keys;
use super::metrics;
use super::output;
use super::protect;
use super::reader::{Table, shown};
use super::value;
use crate::access::{Format, Settings};
use crate::config::{Cgroups, Homing, KernelPath};
use crate::spans;
use crate::worker::socket::PATH_BYTES_MAX;

/// One request in so many, where there are very many.
const TRACES_ONE_IN_MAX: u32 = 1_000_000;
/// IFNAMSIZ, less the NUL.
const INTERFACE_BYTES_MAX: usize = 15;

const STARTS_MAX: u32 = 1_024;
const BINDINGS_MIN: u32 = 1_024;
const BINDINGS_MAX: u32 = 16_000_000;
/// Fourteen megabytes.
const DEFAULT_BINDINGS: u32 = 131_072;

/// The table, or the defaults; nothing where a value that is given is wrong.
pub(super) fn read(table: Option<&Table<'_>>, base: &Path) -> Option<Homing> {
    if let Some(table) = table {
        table.know(keys::HOMING);
    }
    let path = |key: &str, default: &str| match table.filter(|table| table.has(key)) {
        Some(table) => table.parsed(key, |text| value::path(text, base)).map(|given| given.value),
        None => Some(PathBuf::from(default)),
    };
    let kernel_path = match table.filter(|table| table.has("kernel_path")) {
        Some(table) => table.parsed("kernel_path", kernel_path).map(|given| given.value),
        None => Some(KernelPath::Preferred),
    };
    let control_socket = path("control_socket", "/run/homing/control.sock");
    if let (Some(table), Some(socket)) = (table, &control_socket) {
        check_socket(table, socket);
    }
    // All are read before any is missed, so that every complaint is made.
    let (state_dir, log_dir) = (path("state_dir", "/var/lib/homing"), path("log_dir", "/var/log/homing"));
    let run_dir = path("run_dir", "/run/homing");
    let pin_dir = path("pin_dir", "/sys/fs/bpf/homing");
    let cgroups = table.and_then(|table| table.parsed("cgroups", cgroups));
    let interfaces = table.map(interfaces).unwrap_or_default();
    let trusted = table.map(|table| protect::prefixes(table, "trusted_proxies")).unwrap_or_default();
    let bindings = table.and_then(|table| table.number("bindings", BINDINGS_MIN, BINDINGS_MAX));
    let starts = table.and_then(|table| table.number("starts_at_once", 1, STARTS_MAX));
    let access_log = table.and_then(|table| access_log(table, base));
    let traces = table.and_then(traces);
    let output = table.map_or(output::DEFAULT, output::limits);
    let metrics = table.and_then(|table| metrics::read(table, base));
    Some(Homing {
        control_socket: control_socket?,
        state_dir: state_dir?,
        run_dir: run_dir?,
        log_dir: log_dir?,
        pin_dir: pin_dir?,
        cgroups: cgroups.map_or(Cgroups::Preferred, |given| given.value),
        kernel_path: kernel_path?,
        interfaces,
        trusted_proxies: trusted.into_iter().map(|given| given.value).collect(),
        access_log,
        traces,
        output,
        metrics,
        bindings: bindings.map_or(DEFAULT_BINDINGS, |given| given.value),
        starts_at_once: starts.map_or_else(default_starts, |given| given.value),
    })
}

/// A start is mostly the interpreter's work: two for each CPU keep all of them busy.
fn default_starts() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(2 * cpus).unwrap_or(STARTS_MAX).min(STARTS_MAX)
}

fn kernel_path(text: &str) -> Result<KernelPath, String> {
    value::choice(
        text,
        &[("required", KernelPath::Required), ("preferred", KernelPath::Preferred), ("off", KernelPath::Off)],
    )
}

fn access_log(table: &Table<'_>, base: &Path) -> Option<Settings> {
    let path = table.parsed("access_log", |text| {
        let path = value::path(text, base)?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        match dir.is_dir() && !path.is_dir() {
            true => Ok(path),
            false => {
                Err(format!("must be a file in a directory that exists, not `{}`", shown(&path.to_string_lossy())))
            }
        }
    });
    let formats = [("combined", Format::Combined), ("json", Format::Json)];
    let format = table.parsed("access_log_format", |text| value::choice(text, &formats));
    let query = table.flag("access_log_query");
    let idle = [
        ("access_log_format", format.as_ref().map(|given| &given.span)),
        ("access_log_query", query.as_ref().map(|given| &given.span)),
    ];
    for (key, span) in idle.into_iter().filter_map(|(key, span)| Some((key, span?))) {
        if !table.has("access_log") {
            table.wrong(
                span.clone(),
                format!("`{key}` without `access_log` writes nothing; add access_log, or remove it"),
            );
        }
    }
    Some(Settings {
        path: path?.value,
        format: format.map_or(Format::Combined, |given| given.value),
        query: query.is_some_and(|given| given.value),
    })
}

fn traces(table: &Table<'_>) -> Option<spans::Settings> {
    let endpoint = table.parsed("traces", collector);
    let one_in = table.number("traces_one_in", 1, TRACES_ONE_IN_MAX);
    if let Some(one_in) = one_in.as_ref().filter(|_| !table.has("traces")) {
        let told = "`traces_one_in` without `traces` traces nothing; add traces, or remove it".to_owned();
        table.wrong(one_in.span.clone(), told);
    }
    Some(spans::Settings { endpoint: endpoint?.value, one_in: one_in.map_or(1, |given| given.value) })
}

/// Where a collector takes traces, of where it listens.
fn collector(text: &str) -> Result<String, String> {
    let told = || {
        format!(
            "must be where an OpenTelemetry collector takes OTLP over HTTP, like http://127.0.0.1:4318, not `{}`",
            shown(text)
        )
    };
    let url: Uri = text.parse().map_err(|_| told())?;
    match (url.scheme_str(), url.authority(), url.path()) {
        (Some("https"), ..) => {
            Err("must begin with http://; have a collector on this machine, which goes on by TLS".to_owned())
        }
        (Some("http"), Some(authority), "/" | "") => Ok(format!("http://{authority}/v1/traces")),
        (Some("http"), Some(_), _) => Ok(text.to_owned()),
        _ => Err(told()),
    }
}

fn cgroups(text: &str) -> Result<Cgroups, String> {
    value::choice(text, &[("preferred", Cgroups::Preferred), ("off", Cgroups::Off)])
}

fn check_socket(table: &Table<'_>, socket: &Path) {
    let bytes = socket.as_os_str().len();
    if let Some(given) = table.value("control_socket").filter(|_| bytes > PATH_BYTES_MAX) {
        table.wrong(
            given.span(),
            format!(
                "`control_socket` is {bytes} bytes long with its directory, and a unix socket's path has at most \
                 {PATH_BYTES_MAX}; choose a shorter one"
            ),
        );
    }
}

fn interfaces(table: &Table<'_>) -> Vec<String> {
    let mut names = Vec::new();
    for given in table.strings("interfaces", "[\"eth0\"]").unwrap_or_default() {
        let name = given.value;
        let is_name = (1..=INTERFACE_BYTES_MAX).contains(&name.len())
            && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':');
        if !is_name {
            table.wrong(given.span, format!("`{}` cannot be the name of an interface; see `ip link`", shown(name)));
        } else if names.iter().any(|other| other == name) {
            table.wrong(given.span, format!("`{name}` is given twice; remove one"));
        } else {
            names.push(name.to_owned());
        }
    }
    names
}
