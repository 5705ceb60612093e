//! Who may connect, and how often: address lists and rates.

use crate::abi::{LISTED_ALLOW, LISTED_DENY, SERVICE_ALLOWED_ONLY};

/// Whether an address may not connect. `listed`: what the longest prefix that holds it says, `LISTED_*` or 0.
#[inline(always)]
pub const fn is_denied(flags: u32, listed: u32) -> bool {
    listed == LISTED_DENY || (flags & SERVICE_ALLOWED_ONLY != 0 && listed != LISTED_ALLOW)
}

/// The generic cell rate algorithm (ITU-T I.371, annex A), a token bucket in one number: `due_ns` is when the next
/// arrival is due at an even pace. One that comes at most `tolerance_ns` early conforms.
///
/// Returns when the next one is due, or `None` for one too many, which costs its sender nothing.
#[inline(always)]
pub const fn arrive(due_ns: u64, now_ns: u64, interval_ns: u64, tolerance_ns: u64) -> Option<u64> {
    let due_ns = if due_ns > now_ns { due_ns } else { now_ns };
    if due_ns - now_ns > tolerance_ns { None } else { Some(due_ns.saturating_add(interval_ns)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_prefix_decides_and_an_allow_list_denies_the_rest() {
        assert!(!is_denied(0, 0));
        assert!(!is_denied(0, LISTED_ALLOW));
        assert!(is_denied(0, LISTED_DENY));
        assert!(is_denied(SERVICE_ALLOWED_ONLY, 0));
        assert!(is_denied(SERVICE_ALLOWED_ONLY, LISTED_DENY));
        assert!(!is_denied(SERVICE_ALLOWED_ONLY, LISTED_ALLOW));
    }

    /// How many of these arrivals conform.
    fn conforming(arrivals: &[u64], interval: u64, burst: u64) -> std::vec::Vec<u64> {
        let mut due = 0;
        let mut admitted = std::vec::Vec::new();
        for &now in arrivals {
            if let Some(next) = arrive(due, now, interval, (burst - 1) * interval) {
                due = next;
                admitted.push(now);
            }
        }
        admitted
    }

    proptest! {
        #[test]
        fn no_window_admits_more_than_the_burst_and_its_share(
            mut arrivals in prop::collection::vec(1_u64..100_000, 1..300),
            interval in 1_u64..1_000,
            burst in 1_u64..50,
        ) {
            arrivals.sort_unstable();
            let admitted = conforming(&arrivals, interval, burst);
            for (first, from) in admitted.iter().enumerate() {
                for (last, to) in admitted.iter().enumerate().skip(first) {
                    let count = (last - first + 1) as u64;
                    prop_assert!(count <= burst + (to - from) / interval, "{count} within {} ns", to - from);
                }
            }
        }

        #[test]
        fn an_even_pace_is_never_refused(count in 1_u64..300, interval in 1_u64..1_000, burst in 1_u64..50) {
            let arrivals: std::vec::Vec<u64> = (1..=count).map(|n| n * interval).collect();
            prop_assert_eq!(conforming(&arrivals, interval, burst).len() as u64, count);
        }
    }

    #[test]
    fn a_burst_is_admitted_at_once_and_no_more() {
        assert_eq!(conforming(&[1_000; 50], 10, 20).len(), 20);
    }
}
