//! The keys that say what an app's workers may use and reach.

use std::ops::RangeInclusive;

use nix::unistd::Group;

use super::keys;
use super::reader::{Table, shown};
use super::value::{self, Sizes};
use crate::config::isolation::{Isolation, Limits, StopSignal};

/// Below that no interpreter starts.
const MEMORY: Sizes = Sizes { least: "4 MiB", most: "64 TiB", units: "GiB, TiB, KiB, B" };
const CPU_WEIGHT_MAX: u32 = 10_000;
/// Standard streams, a log, a listener and a few libraries; and the kernel's own bound (fs.nr_open) as it comes.
const OPEN_FILES: RangeInclusive<u32> = 16..=1_048_576;
/// The largest number of processes that Linux has ids for.
const PROCESSES_MAX: u32 = 4_194_304;
const CORE: Sizes = Sizes { least: "0", ..MEMORY };

pub(super) fn isolation(app: &Table<'_>) -> Isolation {
    let default = Isolation::default();
    let signals =
        [StopSignal::Term, StopSignal::Int, StopSignal::Quit, StopSignal::Hup].map(|signal| (signal.name(), signal));
    let stop_signal = app.parsed("stop_signal", |text| value::choice(text, &signals));
    let workers = app.silent_table("workers");
    let weight = workers.as_ref().and_then(|workers| workers.number("cpu_weight", 1, CPU_WEIGHT_MAX));
    let memory = workers.and_then(|workers| workers.parsed("memory_max", |text| value::size(text, &MEMORY)));
    Isolation {
        group: app.parsed("group", |name| value::account(name, "group", Group::from_name)).map(|given| given.value),
        umask: app.parsed("umask", umask).map_or(default.umask, |given| given.value),
        limits: app.table("limits").map_or(default.limits, |table| limits(&table, default.limits)),
        no_new_privileges: app.flag("no_new_privileges").map_or(default.no_new_privileges, |given| given.value),
        stop_signal: stop_signal.map_or(default.stop_signal, |given| given.value),
        memory_max: memory.map(|given| given.value),
        cpu_weight: weight.map(|given| given.value),
    }
}

fn limits(table: &Table<'_>, default: Limits) -> Limits {
    table.know(keys::LIMITS);
    let core = |text: &str| if text == "unlimited" { Ok(None) } else { value::size(text, &CORE).map(Some) };
    Limits {
        open_files: table.number("open_files", *OPEN_FILES.start(), *OPEN_FILES.end()).map(|given| given.value),
        processes: table.number("processes", 1, PROCESSES_MAX).map(|given| given.value),
        core: table.parsed("core", core).map_or(default.core, |given| given.value),
    }
}

fn umask(text: &str) -> Result<u32, String> {
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    match u32::from_str_radix(text, 8) {
        Ok(mask) if is_octal && mask <= 0o777 => Ok(mask),
        _ => Err(format!(
            "must be three octal digits, with a leading 0 or without, such as \"0027\", not `{}`",
            shown(text)
        )),
    }
}
