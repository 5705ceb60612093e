//! The streams of one HTTP/2 connection. Each ends when its client takes nothing of its answer for too long.
//!
//! TCP_USER_TIMEOUT does not see such a client: it acknowledges every byte, and opens no window for the stream (RFC 9113
//! section 5.2). hyper would wait for ever, and with it the answer, its connection to the worker and its place there.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use tokio::task_local;
use tokio::time::{Instant, sleep, sleep_until};

use super::body::ResponseBody;
use super::counters::{Counter, Counters};
use super::limits::CLIENT_STALL;
use super::upstream::Failed;

task_local! {
    /// Since when a piece of this stream's answer has been hyper's, to be sent.
    static OFFERED: Cell<Option<Instant>>;
}

/// Runs the streams of a connection, and counts them.
#[derive(Clone)]
pub struct Streams {
    open: Arc<AtomicUsize>,
    counters: Arc<Counters>,
}

/// A stream's answer.
pub struct Offered(pub ResponseBody);

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Streams {
    pub fn new(counters: &Arc<Counters>) -> Self {
        Self { open: Arc::default(), counters: Arc::clone(counters) }
    }

    /// Completes when there has been none for [`CLIENT_STALL`] or twice that: what hyper still has of their answers is then
    /// not taken either.
    pub async fn are_over(&self) {
        let mut were_over = false;
        loop {
            sleep(CLIENT_STALL).await;
            let are_over = self.open.load(Ordering::Relaxed) == 0;
            if are_over && were_over {
                return;
            }
            were_over = are_over;
        }
    }
}

impl<S> Executor<S> for Streams
where
    S: Future + Send + 'static,
{
    fn execute(&self, stream: S) {
        self.open.fetch_add(1, Ordering::Relaxed);
        let (open, counters) = (Open(Arc::clone(&self.open)), Arc::clone(&self.counters));
        let mut stream = Box::pin(stream);
        let mut pause = None;
        let taken = poll_fn(move |cx| {
            let _open = &open;
            if stream.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let Some(offered) = OFFERED.with(Cell::get) else { return Poll::Pending };
            let due = offered + CLIENT_STALL;
            let pause = pause.get_or_insert_with(|| Box::pin(sleep_until(due)));
            loop {
                ready!(pause.as_mut().poll(cx));
                if Instant::now() >= due {
                    counters.add(Counter::Http2Stalled);
                    return Poll::Ready(());
                }
                pause.as_mut().reset(due);
            }
        });
        // Dropped unfinished, the stream is reset (CANCEL).
        tokio::spawn(OFFERED.scope(Cell::new(None), taken));
    }
}

impl Body for Offered {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        let polled = Pin::new(&mut self.get_mut().0).poll_frame(cx);
        // hyper asks for more when it has sent what there was.
        let offered = matches!(polled, Poll::Ready(Some(Ok(_)))).then(Instant::now);
        OFFERED.with(|cell| cell.set(offered));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
