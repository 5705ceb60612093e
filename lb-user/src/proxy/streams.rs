//! The streams of one HTTP/2 connection. Each ends when its client takes nothing of its answer for too long.
//!
//! TCP_USER_TIMEOUT does not see such a client: it acknowledges every byte, and opens no window for the stream (RFC 9113
//! section 5.2). hyper would wait for ever, and with it the answer, its connection to the worker and its place there.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use tokio::sync::oneshot;
use tokio::task_local;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::body::ResponseBody;
use super::counters::{Counter, Counters};
use super::limits::{CLIENT_STALL, PIECE_FORGOTTEN_MAX, TUNNEL_HALF_CLOSED};
use super::upstream::Failed;

task_local! {
    static STREAM: Stream;
}

/// What homing knows of a stream that hyper's task for it does not.
#[derive(Default)]
struct Stream {
    /// Since when a piece of its answer has been hyper's, to be sent.
    offered: Cell<Option<Instant>>,
    /// The end of the tunnel that it becomes.
    tunnel: Cell<Option<oneshot::Receiver<()>>>,
}

/// A tunnel through a stream: as long as this lives.
pub struct Tunnelled {
    _ends: oneshot::Sender<()>,
}

impl Tunnelled {
    /// Through the stream whose task this is; `None` in any other.
    pub fn here() -> Option<Self> {
        let (ends, end) = oneshot::channel();
        STREAM.try_with(|stream| stream.tunnel.set(Some(end))).ok()?;
        Some(Self { _ends: ends })
    }
}

/// Passes what a tunnel says to its client, until that has been taken, or the tunnel is over and its client takes no more of it.
async fn passed(saying: impl Future, over: oneshot::Receiver<()>, counters: &Counters) {
    let mut saying = pin!(saying);
    tokio::select! {
        biased;
        _ = saying.as_mut() => return,
        _ = over => {}
    }
    if timeout(TUNNEL_HALF_CLOSED, saying).await.is_err() {
        counters.add(Counter::Http2Stalled);
    }
}

/// Runs the streams of a connection, and counts them.
#[derive(Clone)]
pub struct Streams {
    open: Arc<AtomicUsize>,
    counters: Arc<Counters>,
}

/// A stream's answer. Its last piece is given in two, of which hyper takes the second when the client can be sent it: all that
/// waits would be forgotten with the first otherwise, whether anybody takes it or not.
pub struct Offered {
    body: ResponseBody,
    /// The end of a last piece.
    last: Option<Bytes>,
}

impl Offered {
    pub fn new(body: ResponseBody) -> Self {
        Self { body, last: None }
    }

    /// The piece without its end, if it is the last one and holds more memory than a stream does.
    fn held(&mut self, piece: Frame<Bytes>) -> Frame<Bytes> {
        match piece.into_data() {
            Ok(mut data) if data.len() > PIECE_FORGOTTEN_MAX && self.body.is_end_stream() => {
                self.last = Some(data.split_off(data.len() - 1));
                Frame::data(data)
            }
            Ok(data) => Frame::data(data),
            Err(piece) => piece,
        }
    }
}

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
        // Dropped unfinished, a stream is reset (CANCEL).
        if let Ok(Some(over)) = STREAM.try_with(|stream| stream.tunnel.take()) {
            tokio::spawn(async move {
                let _open = open;
                passed(stream, over, &counters).await;
            });
            return;
        }
        let mut stream = Box::pin(stream);
        let mut pause = None;
        let taken = poll_fn(move |cx| {
            let _open = &open;
            if stream.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let Some(offered) = STREAM.with(|stream| stream.offered.get()) else { return Poll::Pending };
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
        tokio::spawn(STREAM.scope(Stream::default(), taken));
    }
}

impl Body for Offered {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        let this = self.get_mut();
        let polled = match this.last.take() {
            Some(last) => Poll::Ready(Some(Ok(Frame::data(last)))),
            None => Pin::new(&mut this.body).poll_frame(cx).map_ok(|piece| this.held(piece)),
        };
        // hyper asks for more when it has sent what there was.
        let offered = matches!(polled, Poll::Ready(Some(Ok(_)))).then(Instant::now);
        STREAM.with(|stream| stream.offered.set(offered));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // hyper asks before the first piece alone.
        self.body.size_hint()
    }
}
