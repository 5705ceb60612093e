//! Ends a tunnel of which one end, or both, has said nothing for too long.

use std::time::Duration;

use tokio::time::sleep;

use super::copy::{CLIENT, Traffic};
use crate::config::Http;
use crate::proxy::limits::SILENCE_PARTS;

/// The silences that a tunnel is ended for.
pub struct Silence<'a> {
    traffic: &'a Traffic,
    /// Of both ends.
    idle: Option<Duration>,
    /// Of the client.
    read: Option<Duration>,
}

impl<'a> Silence<'a> {
    pub fn of(http: &Http, traffic: &'a Traffic) -> Option<Self> {
        let silence = Self { traffic, idle: http.websocket_idle, read: http.websocket_read };
        (silence.idle.is_some() || silence.read.is_some()).then_some(silence)
    }

    pub async fn fell(falls: Option<impl Future<Output = ()>>) {
        match falls {
            Some(falls) => falls.await,
            None => std::future::pending().await,
        }
    }

    /// Completes when one of them has lasted long enough, or up to one part in [`SILENCE_PARTS`] longer.
    pub async fn falls(self) {
        let Self { traffic, idle, read } = self;
        tokio::select! {
            () = lasts(idle, || traffic.of_both()) => {}
            () = lasts(read, || traffic.of(CLIENT)) => {}
        }
    }
}

/// Completes when what `look` sees has not changed for so long.
async fn lasts<T: PartialEq>(silence: Option<Duration>, look: impl Fn() -> T) {
    let Some(silence) = silence else { return std::future::pending().await };
    let mut seen = look();
    let mut parts = 0;
    while parts < SILENCE_PARTS {
        sleep(silence / SILENCE_PARTS).await;
        let now = look();
        parts = if now == seen { parts + 1 } else { 0 };
        seen = now;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::super::copy::WORKER;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silence_is_told_from_a_pause_to_a_sixteenth() {
        const IDLE: Duration = Duration::from_secs(160);
        let traffic = Traffic::default();
        let http = |idle, read| Http { websocket_idle: idle, websocket_read: read, ..Http::default() };
        assert!(Silence::of(&http(None, None), &traffic).is_none());
        let speaks = async |end: usize, pauses: u32| {
            for _ in 0..pauses {
                sleep(IDLE * 15 / 16).await;
                traffic.count(end, 1);
            }
            std::future::pending::<()>().await;
        };
        for (idle, read, who) in [(Some(IDLE), None, WORKER), (Some(IDLE), None, CLIENT), (None, Some(IDLE), CLIENT)] {
            let begun = Instant::now();
            tokio::select! {
                () = speaks(who, 3) => {}
                () = Silence::of(&http(idle, read), &traffic).unwrap().falls() => {}
            }
            let lasted = begun.elapsed() - IDLE * 45 / 16;
            assert!(lasted >= IDLE && lasted <= IDLE * 17 / 16, "{lasted:?}");
        }
        // A worker that goes on speaking does not stand for its client.
        let begun = Instant::now();
        tokio::select! {
            () = speaks(WORKER, u32::MAX) => {}
            () = Silence::of(&http(Some(IDLE), Some(IDLE)), &traffic).unwrap().falls() => {}
        }
        assert!(begun.elapsed() <= IDLE * 17 / 16);
    }
}
