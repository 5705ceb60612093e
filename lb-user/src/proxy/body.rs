//! Bodies on their way through, unbuffered, with what must happen when they end or break: the connection goes back
//! to its pool, the worker's load goes down.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::headers;
use super::upstream::Lease;
use crate::routing::Load;

/// One request or tunnel in flight, counted for as long as this lives.
pub struct LoadGuard(Arc<Load>);

impl LoadGuard {
    pub fn new(load: &Arc<Load>) -> Self {
        load.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request's body towards the worker.
pub enum RequestBody {
    Empty,
    Streaming {
        incoming: Incoming,
        /// Set when the client's end broke, so that the worker is not blamed.
        broken: Arc<AtomicBool>,
    },
}

impl RequestBody {
    pub fn new(incoming: Incoming) -> Self {
        if incoming.is_end_stream() { Self::Empty } else { Self::Streaming { incoming, broken: Arc::default() } }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    pub fn broken_flag(&self) -> Option<Arc<AtomicBool>> {
        match self {
            Self::Empty => None,
            Self::Streaming { broken, .. } => Some(Arc::clone(broken)),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Streaming { incoming, broken } => {
                let mut polled = Pin::new(incoming).poll_frame(cx);
                match &mut polled {
                    Poll::Ready(Some(Err(_))) => broken.store(true, Ordering::Release),
                    Poll::Ready(Some(Ok(frame))) => {
                        if let Some(trailers) = frame.trailers_mut() {
                            headers::trailers_to_worker(trailers);
                        }
                    }
                    _ => {}
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streaming { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streaming { incoming, .. } => incoming.size_hint(),
        }
    }
}

/// A body towards the client.
pub enum ResponseBody {
    /// homing's own words.
    Fixed(Option<Bytes>),
    Worker(WorkerBody),
}

/// A worker's answer as it arrives.
pub struct WorkerBody {
    incoming: Incoming,
    /// The connection that it arrives on; taken when it is over.
    lease: Option<Lease>,
    _load: LoadGuard,
}

impl ResponseBody {
    pub fn fixed(bytes: Bytes) -> Self {
        Self::Fixed((!bytes.is_empty()).then_some(bytes))
    }

    pub fn worker(incoming: Incoming, lease: Lease, load: LoadGuard) -> Self {
        let mut body = WorkerBody { incoming, lease: Some(lease), _load: load };
        body.release_at_end();
        Self::Worker(body)
    }
}

impl WorkerBody {
    fn release_at_end(&mut self) {
        if self.incoming.is_end_stream()
            && let Some(lease) = self.lease.take()
        {
            lease.release();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let body = match self.get_mut() {
            Self::Fixed(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Worker(body) => body,
        };
        let polled = Pin::new(&mut body.incoming).poll_frame(cx);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(_))) => body.release_at_end(),
            // The end of a chunked body is seen only here.
            Poll::Ready(None) => drop(body.lease.take().map(Lease::release)),
            Poll::Ready(Some(Err(_))) => drop(body.lease.take().map(Lease::broke)),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Fixed(bytes) => bytes.is_none(),
            Self::Worker(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Fixed(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Worker(body) => body.incoming.size_hint(),
        }
    }
}
