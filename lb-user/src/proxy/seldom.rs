//! Waiting for what seldom happens beside what happens all the time, without a look at the former each time.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use tokio::task::coop::unconstrained;

/// `often`, or `None` if `seldom` is done before it. After the first time `seldom` is polled only if it `has_news`: that must
/// be true from before it wakes its task, and one and the same task must wait here.
///
/// Both are pinned by the caller: what an `async fn` is given it holds twice.
pub fn unless<O: Future, S: Future>(
    mut often: Pin<&mut O>,
    mut seldom: Pin<&mut S>,
    has_news: impl Fn(&S) -> bool,
) -> impl Future<Output = Option<O::Output>> {
    let mut is_awaited = false;
    poll_fn(move |cx| match often.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending if is_awaited && !has_news(&seldom) => Poll::Pending,
        Poll::Pending => {
            is_awaited = true;
            // Without tokio's budget: when that is used up `seldom` would return without having begun to wait.
            pin!(unconstrained(seldom.as_mut())).poll(cx).map(|_| None)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;
    use tokio::task::coop::poll_proceed;
    use tokio::time::{Sleep, sleep};

    use super::*;

    #[tokio::test]
    async fn what_is_done_first_ends_the_wait() {
        let (told, hears) = watch::channel(false);
        let mut waits = hears.clone();
        assert_eq!(unless(pin!(async { 1 }), pin!(waits.changed()), |_| hears.has_changed().unwrap()).await, Some(1));
        let telling = async {
            tokio::task::yield_now().await;
            told.send(true).unwrap();
            std::future::pending::<()>().await;
        };
        assert_eq!(unless(pin!(telling), pin!(waits.changed()), |_| hears.has_changed().unwrap()).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_without_budget_is_waited_for_all_the_same() {
        let mut is_used_up = false;
        let often = poll_fn(|cx| {
            while !is_used_up {
                is_used_up = poll_proceed(cx).map(|used| used.made_progress()).is_pending();
            }
            Poll::<()>::Pending
        });
        let (often, pause) = (pin!(often), pin!(sleep(Duration::from_secs(60))));
        let wait = unless(often, pause, Sleep::is_elapsed);
        assert_eq!(tokio::time::timeout(Duration::from_secs(61), wait).await, Ok(None));
    }
}
