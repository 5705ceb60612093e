//! What `gate` promises of any bytes: its verdict does not depend on how they come, and hyper begins its requests where
//! the gate does.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Mutex;
use std::task::{Wake, Waker};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;

use super::*;
use crate::proxy::limits::{BUFFER_BYTES_MAX, HEAD_BYTES_MAX};

/// Its own pieces would be the work of minutes.
const BY_ONE_BYTES_MAX: usize = 2_048;

/// The first byte is how long a piece is, the others are what a client sends.
pub fn gate(bytes: &[u8]) {
    let Some((&size, text)) = bytes.split_first() else { return };
    let whole = Seen::of(text, text.len());
    let sizes = [usize::from(size), if text.len() > BY_ONE_BYTES_MAX { 509 } else { 1 }];
    for size in sizes {
        assert_eq!(whole, Seen::of(text, size), "in pieces of {size}");
    }
    is_one_with_hyper(text, usize::from(size));
}

/// What went through.
#[derive(Debug, PartialEq)]
struct Seen {
    passed: usize,
    end: End,
}

#[derive(Debug, PartialEq)]
enum End {
    Whole,
    /// The number of the head.
    Bad(u64),
    Lost,
}

impl Seen {
    fn of(text: &[u8], size: usize) -> Self {
        let (mut gate, judgement) = Gate::new(Pieces::new(text, size, true));
        // Each is answered before it has ended: what is kept back, and until when, is not asked here.
        judgement.answered.store(u64::MAX, Ordering::Release);
        let mut passed = 0;
        let mut bytes = vec![0; 4_096];
        let end = loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut gate).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer) {
                Poll::Pending => break End::Bad(judgement.bad.load(Ordering::Acquire)),
                Poll::Ready(Err(_)) => break End::Lost,
                Poll::Ready(Ok(())) if buffer.filled().is_empty() && gate.stream.pieces.is_empty() => break End::Whole,
                Poll::Ready(Ok(())) => {
                    assert!(text[passed..].starts_with(buffer.filled()), "what passes is what came");
                    passed += buffer.filled().len();
                }
            }
        };
        Self { passed, end }
    }
}

/// Every request that hyper hands on is the one that the gate counts as that.
fn is_one_with_hyper(text: &[u8], size: usize) {
    let starts = starts(text);
    let handed = Arc::new(Mutex::new(Vec::new()));
    let (gate, judgement) = Gate::new(Pieces::new(text, size, false));
    let (told, shared) = (Arc::clone(&handed), Arc::clone(&judgement));
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let (answering, is_bad) = shared.begin();
        told.lock().expect("no panic before").push((request.uri().clone(), is_bad));
        async move {
            let mut response = http::Response::new(Empty::<Bytes>::new());
            if is_bad {
                response.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
            } else {
                // A body that is broken ends the connection.
                drop(request.into_body().collect().await);
            }
            drop(answering);
            Ok::<_, Infallible>(response)
        }
    });
    let mut http1 = hyper::server::conn::http1::Builder::new();
    http1.max_header_size(HEAD_BYTES_MAX).max_buf_size(BUFFER_BYTES_MAX);
    let mut served = std::pin::pin!(http1.serve_connection(TokioIo::new(gate), service));
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    while woken.0.swap(false, Ordering::AcqRel) && served.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
    }
    let handed = handed.lock().expect("no panic before");
    let bad = judgement.bad.load(Ordering::Acquire);
    for (number, (uri, is_bad)) in (1..).zip(handed.iter()) {
        assert_eq!(*is_bad, number == bad, "request {number}, and {bad} is bad");
        let start = *starts.get(number as usize - 1).unwrap_or_else(|| panic!("the gate saw no head {number}: {uri}"));
        let line = text[start..].split(|&byte| byte == b'\n').next().unwrap_or_default();
        let target = line.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
        // Another form is written anew, and a bad one may have a fragment.
        if target.first() == Some(&b'/') && !is_bad {
            assert_eq!(uri.to_string().as_bytes(), target, "request {number} begins at {start}");
        }
    }
}

/// Where heads begin.
fn starts(text: &[u8]) -> Vec<usize> {
    let mut reader = Reader::default();
    let mut starts = Vec::new();
    let mut line_start = 0;
    for (at, byte) in text.iter().enumerate() {
        let had_begun = reader.head.has_begun;
        if reader.read(std::slice::from_ref(byte)) == 0 {
            break;
        }
        if !had_begun && reader.head.has_begun {
            starts.push(line_start);
        }
        if *byte == b'\n' || matches!(reader.at, At::Data { .. }) {
            line_start = at + 1;
        }
    }
    starts
}

/// A client that sends so much at a time, reads everything, and then goes, or waits.
struct Pieces {
    pieces: VecDeque<Vec<u8>>,
    goes: bool,
}

impl Pieces {
    fn new(text: &[u8], size: usize, goes: bool) -> Self {
        Self { pieces: text.chunks(size.max(1)).map(<[u8]>::to_vec).collect(), goes }
    }
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(mut piece) = self.pieces.pop_front() else {
            return if self.goes { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let rest = piece.split_off(piece.len().min(buffer.remaining()));
        buffer.put_slice(&piece);
        if !rest.is_empty() {
            self.pieces.push_front(rest);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}
