//! A request on its way to a worker: its head, and its body as it arrives.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::buf::Chain;
use bytes::{Buf, Bytes};
use http::header::{CONTENT_LENGTH, HeaderName, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, Method, request};
use hyper::body::Body as _;
use tokio::io::AsyncWrite;

use super::head;
use crate::proxy::body::{Fault, Passage, RequestBody};
use crate::proxy::check::tokens;

/// Slices of one write.
const SLICES: usize = 3;
/// What goes before data, the data, and what goes behind it.
type Pieces = Chain<Bytes, Chain<Bytes, &'static [u8]>>;

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Why not all of it was sent.
pub enum Unsent {
    /// It is the client's body.
    Body(Fault),
    /// The connection takes no more. It may have an answer all the same.
    Connection,
}

pub struct Sending {
    head: Vec<u8>,
    /// Bytes of the head that have been taken.
    sent: usize,
    body: RequestBody,
    /// Of a body in chunks, the trailers that it announced.
    chunks: Option<Vec<HeaderName>>,
    /// What of the body has arrived and is not sent.
    waiting: Pieces,
    has_ended: bool,
    /// Done again it changes nothing more (RFC 9110 section 9.2.2).
    is_idempotent: bool,
}

impl Sending {
    pub fn new(parts: &request::Parts, body: RequestBody) -> Self {
        // A length is the client's word, and hyper holds it to it.
        let is_chunked = !body.is_empty()
            && (parts.headers.contains_key(TRANSFER_ENCODING) || !parts.headers.contains_key(CONTENT_LENGTH));
        let announced = |token| HeaderName::from_bytes(token).ok();
        let chunks = is_chunked.then(|| tokens(&parts.headers.get_all(TRAILER)).filter_map(announced).collect());
        let is_idempotent =
            matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE);
        Self {
            head: head::written(parts, is_chunked),
            sent: 0,
            has_ended: body.is_empty(),
            body,
            chunks,
            waiting: pieces(Bytes::new(), Bytes::new(), b""),
            is_idempotent,
        }
    }

    /// Whether it does no harm to send it on another connection from its beginning.
    pub fn may_start_anew(&self) -> bool {
        self.sent == 0 || self.is_idempotent && self.body.is_empty()
    }

    /// The same, of which nothing is sent yet.
    pub fn anew(mut self: Box<Self>) -> Box<Self> {
        self.sent = 0;
        self
    }

    pub fn passage(&self) -> Option<Arc<Passage>> {
        self.body.passage()
    }

    /// The body, of which nothing has been taken.
    pub fn into_body(self) -> RequestBody {
        self.body
    }

    /// Sends what there is, and completes when that was all.
    pub fn poll<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<Result<(), Unsent>> {
        loop {
            while self.sent < self.head.len() {
                let taken = ready!(Pin::new(&mut *to).poll_write(cx, &self.head[self.sent..]));
                self.sent += some(taken)?;
            }
            while self.waiting.has_remaining() {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let filled = self.waiting.chunks_vectored(&mut slices);
                let taken = ready!(Pin::new(&mut *to).poll_write_vectored(cx, &slices[..filled]));
                self.waiting.advance(some(taken)?);
                self.body.goes_on();
            }
            if self.has_ended {
                return Poll::Ready(Ok(()));
            }
            self.waiting = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Err(fault)) => return Poll::Ready(Err(Unsent::Body(fault))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.data(data),
                    Err(frame) => self.end(&frame.into_trailers().unwrap_or_default()),
                },
                None => self.end(&HeaderMap::new()),
            };
        }
    }

    fn data(&self, data: Bytes) -> Pieces {
        if self.chunks.is_none() || data.is_empty() {
            return pieces(Bytes::new(), data, b"");
        }
        pieces(format!("{:x}\r\n", data.len()).into(), data, b"\r\n")
    }

    fn end(&mut self, trailers: &HeaderMap) -> Pieces {
        self.has_ended = true;
        let Some(announced) = &self.chunks else { return pieces(Bytes::new(), Bytes::new(), b"") };
        let mut lines = Vec::new();
        for (name, value) in trailers.iter().filter(|(name, _)| announced.contains(name)) {
            lines.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        if lines.is_empty() {
            return pieces(Bytes::new(), Bytes::new(), LAST_CHUNK);
        }
        pieces(Bytes::from_static(b"0\r\n"), lines.into(), b"\r\n")
    }
}

fn pieces(before: Bytes, data: Bytes, behind: &'static [u8]) -> Pieces {
    before.chain(data.chain(behind))
}

fn some(taken: io::Result<usize>) -> Result<usize, Unsent> {
    taken.ok().filter(|&taken| taken > 0).ok_or(Unsent::Connection)
}
