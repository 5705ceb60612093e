//! Bodies on their way through, unbuffered, with what must happen when they end or break: the connection goes back
//! to its pool, the worker's load goes down.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::entry::Entry;
use super::headers;
use super::upstream::{Arriving, Failed};
use crate::routing::Load;

/// One request or tunnel in flight, counted for as long as this lives.
pub struct LoadGuard(Arc<Load>);

impl LoadGuard {
    pub fn new(load: &Arc<Load>) -> Self {
        load.open.begin();
        Self(Arc::clone(load))
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.0.open.end();
    }
}

/// What a request's body may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes.
    pub size_max: Option<u64>,
    /// Silence of the client.
    pub pause_max: Option<Duration>,
}

/// A request's body towards the worker.
pub enum RequestBody {
    Empty,
    Streaming(Box<Upload>),
}

/// A body as it arrives.
pub struct Upload {
    incoming: Incoming,
    passage: Arc<Passage>,
    /// Bytes that may still come.
    left: u64,
    pause_max: Option<Duration>,
    /// Runs while the client is waited for.
    pause: Option<Pin<Box<Sleep>>>,
}

/// How far a request's body is on its way to the worker.
pub struct Passage {
    last: Mutex<Instant>,
}

/// Why a body did not come to its end, where the worker is not to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the client's body broke off or is malformed")]
    Broken,
    #[error("the client fell silent in the midst of its body")]
    Slow,
    #[error("the body is larger than the app takes")]
    TooLarge,
}

impl Default for Passage {
    fn default() -> Self {
        Self { last: Mutex::new(Instant::now()) }
    }
}

impl Passage {
    /// When something of it last went on.
    pub fn last(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes when nothing of it has gone on for so long.
    pub async fn stalls(&self, after: Duration) {
        let mut due = Instant::now() + after;
        loop {
            sleep_until(due).await;
            due = self.last() + after;
            if due <= Instant::now() {
                return;
            }
        }
    }

    pub fn goes_on(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

impl RequestBody {
    pub fn new(incoming: Incoming, bounds: Bounds) -> Self {
        if incoming.is_end_stream() {
            return Self::Empty;
        }
        Self::Streaming(Box::new(Upload {
            incoming,
            passage: Arc::default(),
            left: bounds.size_max.unwrap_or(u64::MAX),
            pause_max: bounds.pause_max,
            pause: None,
        }))
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    pub fn passage(&self) -> Option<Arc<Passage>> {
        match self {
            Self::Empty => None,
            Self::Streaming(upload) => Some(Arc::clone(&upload.passage)),
        }
    }

    /// Something of it has been taken by the worker's connection.
    pub fn goes_on(&self) {
        if let Self::Streaming(upload) = self {
            upload.passage.goes_on();
        }
    }
}

impl Upload {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            return self.poll_pause(cx).map(|()| Some(Err(Fault::Slow)));
        };
        self.pause = None;
        Poll::Ready(match frame {
            None => None,
            Some(Err(_)) => Some(Err(Fault::Broken)),
            Some(Ok(mut frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                if length > self.left {
                    return Poll::Ready(Some(Err(Fault::TooLarge)));
                }
                self.left -= length;
                if let Some(trailers) = frame.trailers_mut() {
                    headers::trailers_to_worker(trailers);
                }
                Some(Ok(frame))
            }
        })
    }

    /// Completes when the client has been silent for too long.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pause_max) = self.pause_max else { return Poll::Pending };
        self.pause.get_or_insert_with(|| Box::pin(sleep(pause_max))).as_mut().poll(cx)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Streaming(upload) => upload.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streaming(upload) => upload.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streaming(upload) => upload.incoming.size_hint(),
        }
    }
}

/// A body towards the client.
pub enum ResponseBody {
    /// homing's own words.
    Fixed(Option<Bytes>),
    Worker(WorkerBody),
    /// One of these, on its way into the access log.
    Told(Box<ToldBody>),
}

/// A body with what is dropped when it has ended.
pub struct Beside<T> {
    body: ResponseBody,
    _kept: T,
}

/// A body that is counted.
pub struct ToldBody {
    body: ResponseBody,
    entry: Entry,
}

/// A worker's answer as it arrives.
pub struct WorkerBody {
    arriving: Arriving,
    _load: LoadGuard,
}

impl ResponseBody {
    pub fn fixed(bytes: Bytes) -> Self {
        Self::Fixed((!bytes.is_empty()).then_some(bytes))
    }

    /// The same, with its line in the access log.
    pub fn told(self, entry: Entry) -> Self {
        Self::Told(Box::new(ToldBody { body: self, entry }))
    }

    /// The same, and what is to be kept until it has ended.
    pub fn beside<T>(self, kept: T) -> Beside<T> {
        Beside { body: self, _kept: kept }
    }

    pub fn worker(arriving: Arriving, load: LoadGuard) -> Self {
        Self::Worker(WorkerBody { arriving, _load: load })
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        match self.get_mut() {
            Self::Fixed(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Worker(body) => Pin::new(&mut body.arriving).poll_frame(cx),
            Self::Told(told) => {
                let polled = Pin::new(&mut told.body).poll_frame(cx);
                if let Poll::Ready(Some(Ok(frame))) = &polled {
                    told.entry.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Fixed(bytes) => bytes.is_none(),
            Self::Worker(body) => body.arriving.is_end_stream(),
            Self::Told(told) => told.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Fixed(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Worker(body) => body.arriving.size_hint(),
            Self::Told(told) => told.body.size_hint(),
        }
    }
}

impl<T: Unpin> Body for Beside<T> {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
