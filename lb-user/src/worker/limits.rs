//! Limits of a worker's processes as the kernel takes them, and what to say when it does not.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit};

use crate::config::isolation::{Limits, size_in_words};

/// Soft and hard alike: a worker raises none. Those without a value stay as homing's own.
pub(super) fn of(limits: &Limits) -> Vec<(Resource, Rlimit)> {
    named(limits).into_iter().map(|(_, _, resource, limit)| (resource, limit)).collect()
}

/// What the place of a limit in [`of`] was meant to be, and why it could not.
pub(super) fn refusal(limits: &Limits, number: usize, error: &io::Error) -> String {
    let named = named(limits);
    let Some((key, wanted, resource, _)) = named.get(number) else { return format!("a limit was refused: {error}") };
    let hard = getrlimit(*resource).maximum.map_or_else(|| "unlimited".to_owned(), |hard| hard.to_string());
    format!(
        "limits.{key} = {wanted} was refused ({error}): homing's own hard limit is {hard}, which only CAP_SYS_RESOURCE may \
         raise; lower it, or raise homing's (ulimit -H, or {} in its systemd unit)",
        unit_setting(*resource)
    )
}

/// The user has as many processes as the limit allows, or more.
pub(super) fn too_many_processes(limits: &Limits) -> String {
    format!(
        "the worker's user runs as many processes as limits.processes = {} allows (they are counted over all of the user's \
         processes and threads, whoever started them); raise it, or give the app a user of its own",
        limits.processes.unwrap_or_default()
    )
}

fn named(limits: &Limits) -> Vec<(&'static str, String, Resource, Rlimit)> {
    let both = |value: Option<u64>| Rlimit { current: value, maximum: value };
    let open_files = limits.open_files.map(u64::from);
    let processes = limits.processes.map(u64::from);
    let core = limits.core.map_or_else(|| "\"unlimited\"".to_owned(), |bytes| format!("\"{}\"", size_in_words(bytes)));
    [
        open_files.map(|count| ("open_files", count.to_string(), Resource::Nofile, both(Some(count)))),
        processes.map(|count| ("processes", count.to_string(), Resource::Nproc, both(Some(count)))),
        Some(("core", core, Resource::Core, both(limits.core))),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn unit_setting(resource: Resource) -> &'static str {
    match resource {
        Resource::Nofile => "LimitNOFILE=",
        Resource::Nproc => "LimitNPROC=",
        _ => "LimitCORE=",
    }
}
