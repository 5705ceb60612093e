//! What every Prometheus client says of its own process, under the names that all use.

use std::fs;

use rustix::process::{Resource, getrlimit};

use super::families;
use super::text::Text;

/// What of it can be read: nothing where /proc is not mounted.
pub(super) fn write(text: &mut Text) {
    if let Some(stat) = Stat::read() {
        text.family(&families::PROCESS_CPU).add(&[], stat.cpu_s);
        text.family(&families::PROCESS_VIRTUAL_MEMORY).add(&[], stat.virtual_bytes);
        text.family(&families::PROCESS_RESIDENT_MEMORY).add(&[], stat.resident_bytes);
        text.family(&families::PROCESS_START).add(&[], stat.start_s);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        text.family(&families::PROCESS_OPEN_FDS).add(&[], open.count());
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        text.family(&families::PROCESS_MAX_FDS).add(&[], most);
    }
}

#[derive(Debug)]
struct Stat {
    cpu_s: f64,
    virtual_bytes: u64,
    resident_bytes: u64,
    /// Unix time.
    start_s: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let machine = fs::read_to_string("/proc/stat").ok()?;
        let boot_s = machine.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse::<u64>().ok()?;
        Self::parse(&stat, boot_s, rustix::param::clock_ticks_per_second(), rustix::param::page_size() as u64)
    }

    /// `boot_s`: Unix time. `hz`: ticks per second.
    fn parse(stat: &str, boot_s: u64, hz: u64, page_bytes: u64) -> Option<Self> {
        // From the third field on (proc_pid_stat(5)): the second is the program's name and may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |ticks: u64| ticks as f64 / hz as f64;
        Some(Self {
            cpu_s: seconds(field(14)? + field(15)?),
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * page_bytes,
            start_s: boot_s as f64 + seconds(field(22)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_those_of_the_manual() {
        let line = "42 (a) b) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 9 0 1200 4096000 25 18446744073709551615";
        let stat = Stat::parse(line, 1_000, 100, 4_096).expect("whole");
        assert_eq!((stat.cpu_s, stat.start_s), (2.0, 1_012.0));
        assert_eq!((stat.virtual_bytes, stat.resident_bytes), (4_096_000, 102_400));
        assert!(Stat::parse("42 (a) S 1", 1_000, 100, 4_096).is_none());
    }

    #[test]
    fn the_own_process_started_before_now() {
        let stat = Stat::read().expect("readable");
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs_f64();
        assert!(stat.start_s > 1e9 && stat.start_s < now + 2.0, "{stat:?} at {now}");
        assert!(stat.resident_bytes > 100_000, "{stat:?}");
    }
}
