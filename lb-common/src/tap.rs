//! Taps: who wants to be told of decisions (`homing trace --live`), of which, and of how many. Weighed alike in the kernel's
//! programs and on the HTTP path.
//!
//! The structures are map values and records of the ring buffer, and so part of the ABI:
//! change one of them and raise [`crate::abi::ABI_VERSION`].

use crate::abi::BackendId;
use crate::addr::Addr;
use crate::{guard, hash};

/// Listeners at once.
pub const TAPS_MAX: u32 = 4;
/// Bytes of decisions that wait to be read; what finds no room is counted and forgotten. A power of two of whole pages.
pub const DECISIONS_BYTES: u32 = 256 * 1024;
/// A tap closes by itself this long after its listener was last known to be there: a homing that was killed extends none.
pub const TAP_OPEN_NS: u64 = 3_000_000_000;
/// [`Tap::app`] of one for all apps.
pub const EVERY_APP: u32 = u32::MAX;

/// What one listener wants to be told.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tap {
    /// Until when it is open, in ns of CLOCK_MONOTONIC (coarse); 0: closed.
    pub until_ns: u64,
    /// Between two decisions at an even pace.
    pub interval_ns: u64,
    /// How early one may come.
    pub tolerance_ns: u64,
    /// Masked to `client_bits`.
    pub client: Addr,
    /// Leading bits in which an address is the client's; 0: everybody is meant.
    pub client_bits: u32,
    /// Or [`EVERY_APP`].
    pub app: u32,
    /// One in so many is told, 1 or more.
    pub one_in: u32,
    pub reserved: u32,
}

/// All of them, and the one number that is read where nobody listens.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Taps {
    /// The latest of [`Tap::until_ns`]; 0: nobody listens.
    pub until_ns: u64,
    pub taps: [Tap; TAPS_MAX as usize],
}

/// What a tap has let by, per CPU.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TapCounts {
    /// Decisions that it is for.
    pub seen: u64,
    /// Of those that were sampled: not told, because they came faster than its rate.
    pub too_fast: u64,
    /// Not told, because nobody read the others fast enough.
    pub no_room: u64,
}

/// A decision on a new connection, as the ring buffer has it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// The peer, unmasked.
    pub address: Addr,
    /// Who gets the connection, if anybody does.
    pub backend: BackendId,
    pub app: u32,
    /// A [`Rule`].
    pub rule: u32,
    /// The peer's, host byte order.
    pub port: u16,
    /// Whom to tell: bit `n` for tap `n`.
    pub taps: u16,
}

macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What decided on a connection.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Rule { $($(#[doc = $doc])+ $variant,)+ }

        impl Rule {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// As `homing trace` shows it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

rules! {
    /// The owner of the client's slot.
    Ring = "ring",
    /// The backend that the client is bound to; its slot is in transition.
    Bound = "bound",
    /// The HTTP path: affinity is by cookie.
    Cookie = "cookie",
    /// The HTTP path: the client is promoted.
    Promoted = "promoted",
    /// The HTTP path: the app has no worker.
    NoWorker = "no_worker",
    /// The HTTP path: the chosen worker has no live socket of that address family.
    NoSocket = "no_socket",
    /// Refused: the address is denied by the app's lists.
    Denied = "denied",
    /// Refused: the client opens more than it may.
    ClientTooFast = "client_too_fast",
    /// Refused: all clients together open more than they may.
    AppTooFast = "app_too_fast",
}

impl Rule {
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// Whether the connection goes no further.
    pub const fn refuses(self) -> bool {
        matches!(self, Self::Denied | Self::ClientTooFast | Self::AppTooFast)
    }
}

/// Whether a decision is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weight {
    /// It is among those that the sample leaves out.
    Skipped,
    /// It is one too many for this moment.
    TooFast,
    /// The next one is due then.
    Told { due_ns: u64 },
}

impl Tap {
    /// At most `rate` decisions a second, 1 or more, so many at once, of one in `one_in`.
    pub const fn new(app: u32, client: Addr, client_bits: u32, one_in: u32, rate: u32) -> Self {
        let interval_ns = 1_000_000_000 / rate as u64;
        Self {
            until_ns: 0,
            interval_ns,
            tolerance_ns: interval_ns * (rate as u64 - 1),
            client: client.mask(client_bits),
            client_bits,
            app,
            one_in,
            reserved: 0,
        }
    }

    /// Whether it is open and the decision is one that it is for.
    #[inline(always)]
    pub const fn is_for(&self, app: u32, address: Addr, now_ns: u64) -> bool {
        let masked = address.mask(self.client_bits);
        now_ns < self.until_ns
            && (self.app == EVERY_APP || self.app == app)
            && masked.high == self.client.high
            && masked.low == self.client.low
    }

    /// What becomes of the `nth` decision that it is for. `due_ns`: as the last one that was told left it.
    #[inline(always)]
    pub const fn weigh(&self, nth: u64, due_ns: u64, now_ns: u64) -> Weight {
        // Not every nth: of clients that come in turns it would tell of the same one each time.
        if self.one_in > 1 && hash::slot(hash::finalise(nth.wrapping_add(1)), self.one_in) != 0 {
            return Weight::Skipped;
        }
        match guard::arrive(due_ns, now_ns, self.interval_ns, self.tolerance_ns) {
            Some(due_ns) => Weight::Told { due_ns },
            None => Weight::TooFast,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Addr = Addr::v4([192, 0, 2, 7]);
    const EVERYBODY: Addr = Addr { high: 0, low: 0 };

    fn open(tap: Tap) -> Tap {
        Tap { until_ns: u64::MAX, ..tap }
    }

    /// How many of `count` decisions that come this far apart are told, skipped and too fast.
    fn told(tap: &Tap, count: u64, apart_ns: u64) -> (u64, u64, u64) {
        let (mut told, mut skipped, mut too_fast, mut due) = (0, 0, 0, 0);
        for nth in 0..count {
            match tap.weigh(nth, due, 1 + nth * apart_ns) {
                Weight::Told { due_ns } => (told, due) = (told + 1, due_ns),
                Weight::Skipped => skipped += 1,
                Weight::TooFast => too_fast += 1,
            }
        }
        (told, skipped, too_fast)
    }

    #[test]
    fn no_map_value_and_no_record_has_hidden_padding() {
        assert_eq!(size_of::<Tap>(), 3 * 8 + 16 + 4 * 4);
        assert_eq!(size_of::<Taps>(), 8 + 4 * 56);
        assert_eq!(size_of::<TapCounts>(), 3 * 8);
        assert_eq!(size_of::<Decision>(), 16 + 3 * 4 + 2 * 2);
        const { assert!(DECISIONS_BYTES.is_power_of_two()) };
        const { assert!(TAPS_MAX <= u16::BITS, "the bits of Decision::taps") };
    }

    #[test]
    fn a_tap_is_for_its_app_and_its_client_while_it_is_open() {
        let tap = open(Tap::new(3, CLIENT, 120, 1, 10));
        assert!(tap.is_for(3, Addr::v4([192, 0, 2, 200]), 0), "the client is a /24 here");
        assert!(!tap.is_for(3, Addr::v4([192, 0, 3, 7]), 0));
        assert!(!tap.is_for(4, CLIENT, 0));
        assert!(!Tap { until_ns: 5, ..tap }.is_for(3, CLIENT, 5), "its time is over");
        assert!(!Tap::default().is_for(0, EVERYBODY, 0), "one that was never open");
        let all = open(Tap::new(EVERY_APP, EVERYBODY, 0, 1, 10));
        assert!(all.is_for(0, CLIENT, 0) && all.is_for(9, Addr::v6([0x20; 16]), 0));
    }

    #[test]
    fn a_flood_is_told_at_the_rate_and_every_decision_is_accounted_for() {
        let tap = open(Tap::new(EVERY_APP, EVERYBODY, 0, 1, 100));
        // 1,000,000 in ten seconds: a burst of a second's worth, and then the rate.
        assert_eq!(told(&tap, 1_000_000, 10_000), (1_099, 0, 1_000_000 - 1_099));
        assert_eq!(told(&tap, 1_000, 10_000_000), (1_000, 0, 0), "at the rate nothing is lost");
    }

    #[test]
    fn a_sample_is_about_one_in_so_many_and_takes_turns() {
        let tap = open(Tap::new(EVERY_APP, EVERYBODY, 0, 10, 1_000_000));
        let (told, skipped, too_fast) = told(&tap, 100_000, 1_000_000);
        assert!((9_500..10_500).contains(&told) && told + skipped == 100_000 && too_fast == 0, "{told}");
        let of_even = (0..10_000).step_by(2).filter(|&nth| tap.weigh(nth, 0, 1) != Weight::Skipped).count();
        assert!((400..600).contains(&of_even), "{of_even} of 5,000");
    }

    #[test]
    fn a_rule_survives_its_number() {
        for &rule in Rule::ALL {
            assert_eq!(Rule::from_number(rule as u32), Some(rule));
        }
        assert_eq!(Rule::from_number(Rule::ALL.len() as u32), None);
    }
}
