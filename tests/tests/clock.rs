//! The wall clock jumps, as after a night without a battery or by a wrong time server: nobody moves. It sets the clock of the
//! machine that it runs on, and so runs in a guest of `cargo xtask vm` alone. Needs root.

use std::time::Instant;

use homing_tests::network::client_v4;
use homing_tests::site::{CLIENTS, Site, assert_kept};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use serde_json::Value;

const DAY_S: i64 = 86_400;

/// Sets the wall clock right again.
struct Clock {
    true_at: Instant,
    true_s: i64,
}

impl Clock {
    fn new() -> Self {
        assert!(
            std::env::var_os("HOMING_GUEST").is_some(),
            "it sets the machine's clock: cargo xtask vm runs it in a guest"
        );
        Self { true_at: Instant::now(), true_s: clock_gettime(ClockId::Realtime).tv_sec }
    }

    fn jump(&self, by_s: i64) {
        let passed_s = i64::try_from(self.true_at.elapsed().as_secs()).expect("a test's time");
        let at = Timespec { tv_sec: self.true_s + passed_s + by_s, tv_nsec: 0 };
        clock_settime(ClockId::Realtime, at).expect("root may");
        assert!((clock_gettime(ClockId::Realtime).tv_sec - at.tv_sec).abs() < 60, "it has jumped");
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.jump(0);
    }
}

fn uptime(status: &Value) -> u64 {
    status["uptime_seconds"].as_u64().expect("seconds")
}

#[test]
fn the_wall_clock_jumps_ahead_and_back_and_nobody_moves() {
    let clock = Clock::new();
    let site = Site::start("127.0.0.1", "");
    let pids = site.homing.pids(0);
    let mut sessions = site.sessions();
    for days in [400, -9_000, 0] {
        clock.jump(days * DAY_S);
        let before = uptime(&site.homing.status());
        // By the time that passes for everybody: bindings, promotions, workers and files have been looked at since.
        site.homing.wait_until("homing has looked at all", |status| uptime(status) >= before + 11);
        // Slots in transition go by how long ago a client was seen.
        for order in ["drain", "undrain"] {
            assert!(site.homing.ask(&[order, "demo/3"]).status.success());
            sessions.iter_mut().for_each(assert_kept);
        }
        assert_eq!(site.homing.pids(0), pids, "after {days} days");
        let status = site.homing.status();
        assert!(uptime(&status) < before + 3_600, "{status:#}");
    }
    let newcomers: Vec<_> = (1..=CLIENTS).map(|number| site.client(client_v4(number)).open()).collect();
    assert!(newcomers.iter().zip(&sessions).all(|(new, old)| new.hello.worker == old.hello.worker));
}
