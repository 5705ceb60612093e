//! Which tests run under which kernels, and why not all under all: without hardware help a guest takes some ten to twenty
//! times as long as this machine, and a whole run is to end within the hour.

use std::time::Duration;

use super::kernels::Series;

/// What one test may take in a guest.
pub const TEST_LIMIT: Duration = Duration::from_secs(150);
/// What all of one kernel's tests may take.
pub const GUEST_LIMIT_MIN: u64 = 40;
/// What the tier's few tests may take under one kernel.
pub const TIER_GUEST_LIMIT: Duration = Duration::from_secs(300);

/// The suite for kernels without a kernel path, and for them alone.
pub const LACKING: &str = "lacking";

/// The oldest kernel that homing's programs load on, and the newest.
const OLDEST: &str = "6.1";
const NEWEST: &str = "7.2";

/// Where a suite runs.
#[derive(Clone, Copy, PartialEq)]
enum Under {
    /// All with a kernel path.
    All,
    /// The oldest: it lacks most, and these are about homing more than about the kernel.
    Oldest,
    /// Those without a kernel path.
    TooOld,
}

/// Suites that say something about a kernel, quick ones first.
const SUITES: [(&str, Under); 15] = [
    ("kernel", Under::All),
    ("remote", Under::All),
    ("loaders", Under::All),
    ("e2e", Under::All),
    ("modules", Under::All),
    ("tunnels", Under::All),
    ("devices", Under::All),
    ("affinity", Under::All),
    ("protection", Under::All),
    ("clock", Under::All),
    ("promotion", Under::Oldest),
    ("backends", Under::Oldest),
    ("successors", Under::Oldest),
    ("sockets", Under::Oldest),
    (LACKING, Under::TooOld),
];

/// Two kernels for the tier of `cargo xtask test`.
pub const TIER_KERNELS: [&str; 2] = [OLDEST, NEWEST];
/// What the tier asks of each: that the programs load by either loader, read packets as user space does, change them as
/// they should, tell of what they do, and that clients reach their worker by them.
pub const TIER_TESTS: [&str; 6] = [
    "kernel every_fixture_is_read_alike_in_user_space_and_in_the_kernel",
    "kernel a_decision_is_told_to_who_listens_for_its_client_at_the_rate_that_was_asked_for",
    "kernel the_verifier_accepts_the_program_that_delivers_connections",
    "remote a_packet_too_big_for_the_tunnel_is_answered_with_the_size_that_fits",
    "loaders loaded_by_libbpf_the_object_says_the_same_of_every_fixture",
    "e2e clients_over_ipv4_keep_their_worker_on_the_kernel_path",
];

/// Debian's interpreter is larger than all that a guest has.
const NO_PYTHON: &str = "the guest has no python3";

/// Tests that cannot run in a guest, or not under these kernels, and why.
const NOT: [(&str, &[&str], &str); 11] = [
    ("devices tcx_programs_of_another_are_named_in_both_directions_and_stay", &[], NO_PYTHON),
    ("e2e a_worker_that_answers_in_pieces_is_not_kept_waiting_for_acknowledgements", &[], NO_PYTHON),
    ("sockets a_listening_socket_that_is_opened_anew_has_the_kernel_path_again", &[], NO_PYTHON),
    ("sockets a_socket_for_ipv6_that_is_opened_later_has_the_kernel_path_too", &[], NO_PYTHON),
    ("sockets a_worker_may_listen_on_all_addresses_or_on_ipv6_alone", &[], NO_PYTHON),
    ("sockets processes_that_share_a_port_by_reuseport_are_all_on_the_kernel_path_as_they_come_and_go", &[], NO_PYTHON),
    ("sockets what_a_worker_listens_on_in_place_of_what_it_was_given_is_told", &[], NO_PYTHON),
    (
        "e2e live_counts_are_exact_after_a_storm_of_connections",
        &[],
        "15,300 connections take longer than the minute that the clients have",
    ),
    ("devices a_configured_name_is_followed_from_one_interface_to_the_next", &["6.1"], RENAMES_DOWN),
    ("devices a_renamed_interface_keeps_the_program_under_its_new_name", &["6.1"], RENAMES_DOWN),
    (
        "kernel the_memory_that_check_states_is_what_the_kernel_sets_aside",
        &["6.1"],
        "Linux before 6.4 tells a formula's result and not what it has set aside",
    ),
];

/// Linux: net/core/dev.c, `dev_change_name`.
const RENAMES_DOWN: &str = "Linux 6.1 renames no interface that is up";

/// All suites, to be built.
pub fn suites() -> Vec<&'static str> {
    SUITES.iter().map(|(name, _)| *name).collect()
}

/// Whether the suite runs under this kernel; `is_named`: also where the table has it for another.
pub fn runs(suite: &str, series: &Series, is_named: bool) -> bool {
    SUITES.iter().any(|(name, under)| {
        *name == suite
            && match under {
                Under::TooOld => !series.has_kernel_path,
                _ if is_named => series.has_kernel_path,
                Under::All => series.has_kernel_path,
                Under::Oldest => series.name == OLDEST,
            }
    })
}

/// Why this test, by suite and name, does not run under this kernel though its suite does.
pub fn reason_against(test: &str, series: &Series) -> Option<&'static str> {
    let is_meant = |kernels: &[&str]| kernels.is_empty() || kernels.contains(&series.name);
    NOT.iter().find(|(name, kernels, _)| *name == test && is_meant(kernels)).map(|(_, _, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::kernels::SERIES;

    fn series(name: &str) -> &'static Series {
        SERIES.iter().find(|series| series.name == name).expect("a series of that name")
    }

    #[test]
    fn what_the_tier_asks_runs_under_its_kernels() {
        for kernel in TIER_KERNELS.map(series) {
            for test in TIER_TESTS {
                let suite = test.split(' ').next().expect("a suite");
                assert!(
                    runs(suite, kernel, false) && reason_against(test, kernel).is_none(),
                    "{test}, {}",
                    kernel.name
                );
            }
        }
    }

    #[test]
    fn what_is_left_out_is_there() {
        // The suites' sources, not a build of them: a name that nobody has leaves out nothing.
        for (test, _, _) in NOT {
            let (suite, name) = test.split_once(' ').expect("a suite and a test");
            let tests = crate::run::root().join("tests/tests");
            let folder = tests.join(suite);
            let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            let texts =
                files.chain([tests.join(format!("{suite}.rs"))]).filter_map(|file| std::fs::read_to_string(file).ok());
            assert!(texts.into_iter().any(|text| text.contains(&format!("fn {name}("))), "nobody has {test}");
        }
    }

    #[test]
    fn a_kernel_that_is_too_old_is_asked_how_it_says_so_and_nothing_else() {
        let too_old: Vec<&Series> = SERIES.iter().filter(|series| !series.has_kernel_path).collect();
        assert!(!too_old.is_empty());
        for kernel in too_old {
            for is_named in [false, true] {
                let here: Vec<&str> = suites().into_iter().filter(|suite| runs(suite, kernel, is_named)).collect();
                assert_eq!(here, [LACKING]);
            }
        }
        assert!(!runs(LACKING, series(OLDEST), true));
    }
}
