//! Timers, hyper's among them, which hear a client before they give it up although homing itself was stopped for as long as they wait.
//!
//! A process that was stopped and goes on (SIGSTOP, a frozen cgroup, a paused machine) finds its timers run out before it has read
//! what came meanwhile: that it goes on interrupts epoll_wait(2) (signal(7)), which then tells of nothing. So a timer that has run
//! out gives what is there another moment to be seen.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// For what came meanwhile to be read, also where all else on the machine goes on at the same time.
const MOMENT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub struct PatientTimer;

pin_project_lite::pin_project! {
    struct Patient {
        #[pin]
        sleep: tokio::time::Sleep,
        has_had_its_moment: bool,
    }
}

impl Future for Patient {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            ready!(this.sleep.as_mut().poll(context));
            if std::mem::replace(this.has_had_its_moment, true) {
                return Poll::Ready(());
            }
            this.sleep.as_mut().reset(tokio::time::Instant::now() + MOMENT);
        }
    }
}

impl Sleep for Patient {}

/// What the future comes to within the limit, or before whoever is there then has been heard.
///
/// # Errors
/// The future's own, and [`io::ErrorKind::TimedOut`].
pub async fn timeout<T>(limit: Duration, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let sleep = Patient { sleep: tokio::time::sleep(limit), has_had_its_moment: false };
    tokio::select! {
        biased;
        done = future => done,
        () = sleep => Err(io::ErrorKind::TimedOut.into()),
    }
}

impl Timer for PatientTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Patient { sleep: tokio::time::sleep_until(deadline.into()), has_had_its_moment: false })
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<Patient>() {
            Some(patient) => {
                let this = patient.project();
                this.sleep.reset(deadline.into());
                *this.has_had_its_moment = false;
            }
            None => *sleep = self.sleep_until(deadline),
        }
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_is_there_when_a_timer_has_run_out_is_heard_first() {
        let begun = tokio::time::Instant::now();
        let mut sleep = PatientTimer.sleep(Duration::from_secs(10));
        // As if homing had been stopped: nobody looks for longer than it waits.
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(futures_util::poll!(sleep.as_mut()).is_pending());
        sleep.as_mut().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(30) + MOMENT, "and given up then");
        let begun = tokio::time::Instant::now();
        let (heard, hears) = tokio::sync::oneshot::channel();
        let mut heard_late = std::pin::pin!(timeout(Duration::from_secs(10), async { Ok(hears.await) }));
        assert!(futures_util::poll!(heard_late.as_mut()).is_pending());
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(futures_util::poll!(heard_late.as_mut()).is_pending());
        heard.send("there").expect("somebody waits");
        assert_eq!(heard_late.await.expect("it was there in time"), Ok("there"));
        let never = timeout(Duration::from_secs(10), std::future::pending::<io::Result<()>>()).await;
        assert_eq!(never.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        assert_eq!(begun.elapsed(), Duration::from_secs(40) + MOMENT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_is_set_anew_has_its_moment_again() {
        let begun = tokio::time::Instant::now();
        let mut sleep = PatientTimer.sleep(Duration::from_secs(10));
        sleep.as_mut().await;
        PatientTimer.reset(&mut sleep, (begun + Duration::from_secs(50)).into());
        sleep.await;
        assert_eq!(begun.elapsed(), Duration::from_secs(50) + MOMENT);
    }
}
