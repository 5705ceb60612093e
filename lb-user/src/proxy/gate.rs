//! What hyper repairs before anybody sees it, and what is refused here instead: two framings in one head
//! (RFC 9112 section 6.3) or one in an odd form, lines that LF alone ends, a fragment in the target. See docs/decisions/0019.
//!
//! Reads along between the socket and hyper and changes nothing, until a head is bad: hyper gets that head and not a
//! byte of what follows. hyper still judges all that is judged here, and more; this only has to know where heads begin.
//!
//! What comes behind a request is kept back until that one is answered. hyper would take it at once, and not look any more
//! whether its client is still there.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes, BytesMut};
use memchr::memchr;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::limits::PIPELINED_BYTES_MAX;

/// Bytes of a line that are kept when it comes in pieces, and that a line has which says how long a body is.
const LINE_KEPT: usize = 64;
/// Digits of a chunk's size: those of 2^64, and zeros that somebody may find beautiful.
const SIZE_DIGITS_MAX: usize = 32;

/// A client's stream that is read along.
pub struct Gate<S> {
    stream: S,
    reader: Reader,
    /// What has come behind a request that is not answered.
    kept: BytesMut,
    shared: Arc<Judgement>,
}

/// Which of a connection's requests is bad, told to whoever handles them; and which are answered, told by them.
#[derive(Default)]
pub struct Judgement {
    /// Counted from 1; 0 while none is. The last of its connection, since nothing is read behind it.
    bad: AtomicU64,
    handled: AtomicU64,
    answered: AtomicU64,
    has_switched: AtomicBool,
    /// Who waits for an answer's end to read on.
    waits: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

/// Marks a request whose head is bad.
#[derive(Clone)]
pub struct Unclear;

/// A request that is being answered, until this is dropped: from then on what came behind it is read.
pub struct Answering(Arc<Judgement>);

impl Judgement {
    /// For each request once, in their order: and whether its head is bad.
    pub fn begin(self: &Arc<Self>) -> (Answering, bool) {
        let number = self.handled.fetch_add(1, Ordering::Relaxed) + 1;
        // Set before hyper was given the last byte of that head.
        (Answering(Arc::clone(self)), self.bad.load(Ordering::Acquire) == number)
    }

    fn waiting(&self, waker: Option<Waker>) -> Option<Waker> {
        std::mem::replace(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner), waker)
    }
}

impl Answering {
    /// What comes from now on is another protocol. To be called before the client is told.
    pub fn switch(&self) {
        self.0.has_switched.store(true, Ordering::Release);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answered.fetch_add(1, Ordering::Release);
        if self.0.waits.swap(false, Ordering::AcqRel)
            && let Some(waker) = self.0.waiting(None)
        {
            waker.wake();
        }
    }
}

impl<S> Gate<S> {
    pub fn new(stream: S) -> (Self, Arc<Judgement>) {
        let shared = Arc::<Judgement>::default();
        let gate = Self { stream, reader: Reader::default(), kept: BytesMut::new(), shared: Arc::clone(&shared) };
        (gate, shared)
    }

    /// The stream, and what has come behind the last request.
    pub fn into_inner(self) -> (S, Bytes) {
        (self.stream, self.kept.freeze())
    }

    /// Whether what comes next is hyper's: the rest of a request, or the next one if all before it are answered.
    fn may_go_on(&self) -> bool {
        !self.reader.is_between || self.shared.answered.load(Ordering::Acquire) >= self.reader.heads
    }

    /// What hyper may have of this now, in bytes.
    fn judge(&mut self, bytes: &[u8]) -> usize {
        if self.shared.has_switched.load(Ordering::Acquire) {
            return bytes.len();
        }
        let read = self.reader.read(bytes);
        if self.reader.is_bad {
            self.shared.bad.store(self.reader.heads, Ordering::Release);
        }
        read
    }

    /// Who waits because of what is kept is woken by its answer's end.
    fn wait(&self, cx: &Context<'_>) {
        if !self.kept.is_empty() {
            drop(self.shared.waiting(Some(cx.waker().clone())));
            self.shared.waits.store(true, Ordering::Release);
            if self.may_go_on() {
                cx.waker().wake_by_ref();
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        if gate.reader.is_bad {
            // Not an end, which hyper would take for a client that went away and does not want its answer. The answer
            // closes the connection.
            return Poll::Pending;
        }
        if gate.reader.is_lost {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a chunk's size is too long, or LF alone ends a line",
            )));
        }
        if !gate.kept.is_empty() && gate.may_go_on() {
            let mut kept = std::mem::take(&mut gate.kept);
            let read = gate.judge(&kept[..kept.len().min(buffer.remaining())]);
            buffer.put_slice(&kept[..read]);
            kept.advance(read);
            gate.kept = kept;
            return Poll::Ready(Ok(()));
        }
        loop {
            if gate.kept.len() >= PIPELINED_BYTES_MAX {
                gate.wait(cx);
                return Poll::Pending;
            }
            let before = buffer.filled().len();
            if Pin::new(&mut gate.stream).poll_read(cx, buffer)?.is_pending() {
                gate.wait(cx);
                return Poll::Pending;
            }
            let come = &buffer.filled()[before..];
            if come.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let read = if gate.may_go_on() { gate.judge(come) } else { 0 };
            gate.kept.extend_from_slice(&come[read..]);
            buffer.set_filled(before + read);
            if read > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Knows where heads begin and end.
#[derive(Default)]
struct Reader {
    at: At,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    /// Of that line: its last byte so far, and whether there is a `#` in it.
    last: u8,
    has_hash: bool,
    head: Head,
    /// Heads that have ended.
    heads: u64,
    /// Behind a request, of whose next one nothing has come.
    is_between: bool,
    is_bad: bool,
    /// In a body, where nothing that follows can be found any more.
    is_lost: bool,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum At {
    /// Before or in a head.
    #[default]
    Head,
    /// Bytes of a body or chunk, with its CRLF; then a head or a chunk's size.
    Data {
        left: u64,
        is_chunk: bool,
    },
    ChunkSize,
    Trailers,
}

/// What a head has said so far.
#[derive(Default)]
struct Head {
    has_begun: bool,
    length: Option<u64>,
    is_chunked: bool,
    is_bad: bool,
}

impl Reader {
    /// How much of it hyper may have: up to the end of the request, or to where it must not read on.
    fn read(&mut self, bytes: &[u8]) -> usize {
        self.is_between &= bytes.is_empty();
        let mut rest = bytes;
        while !rest.is_empty() && !self.is_between && !self.is_bad && !self.is_lost {
            if let At::Data { left, is_chunk } = self.at {
                let now = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                rest = &rest[now..];
                match (left - now as u64, is_chunk) {
                    (0, false) => self.ends(),
                    (0, true) => self.at = At::ChunkSize,
                    (left, _) => self.at = At::Data { left, is_chunk },
                }
                continue;
            }
            let end = memchr(b'\n', rest);
            let (piece, ends) = end.map_or((rest, false), |end| (&rest[..end], true));
            rest = &rest[piece.len() + usize::from(ends)..];
            if ends && self.line.is_empty() {
                // Most lines come whole.
                self.line_is(piece, piece.last().copied().unwrap_or_default(), piece);
                continue;
            }
            self.last = piece.last().copied().unwrap_or(self.last);
            self.has_hash |= piece.contains(&b'#');
            let kept = LINE_KEPT.saturating_sub(self.line.len()).min(piece.len());
            self.line.extend_from_slice(&piece[..kept]);
            if ends {
                let line = std::mem::take(&mut self.line);
                let hash: &[u8] = if std::mem::take(&mut self.has_hash) { b"#" } else { b"" };
                self.line_is(&line, self.last, hash);
            }
        }
        bytes.len() - rest.len()
    }

    /// A line without its LF, or the beginning of one. `last`: its last byte; `hash`: where to look for a `#`.
    fn line_is(&mut self, line: &[u8], last: u8, hash: &[u8]) {
        let is_empty = line.is_empty() || line == b"\r";
        match self.at {
            At::Head if is_empty && !self.head.has_begun => {}
            At::Head if is_empty => {
                self.head.is_bad |= last != b'\r';
                self.head_ends();
            }
            At::Head => {
                let is_first = !std::mem::replace(&mut self.head.has_begun, true);
                self.head.is_bad |= last != b'\r' || is_first && hash.contains(&b'#');
                if !is_first {
                    self.head.line(line);
                }
            }
            At::ChunkSize => {
                let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
                let size =
                    std::str::from_utf8(&line[..digits]).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
                self.is_lost = digits > SIZE_DIGITS_MAX || last != b'\r';
                self.at = match size {
                    Some(0) => At::Trailers,
                    Some(size) => At::Data { left: size.saturating_add(2), is_chunk: true },
                    // hyper does not read on from here.
                    None => At::Data { left: u64::MAX, is_chunk: false },
                };
            }
            // hyper takes what follows such a line for trailers.
            At::Trailers if last != b'\r' => self.is_lost = true,
            At::Trailers if is_empty => self.ends(),
            At::Trailers | At::Data { .. } => {}
        }
    }

    fn head_ends(&mut self) {
        let head = std::mem::take(&mut self.head);
        self.heads += 1;
        self.is_bad = head.is_bad || head.is_chunked && head.length.is_some();
        match head.length {
            _ if head.is_chunked => self.at = At::ChunkSize,
            None | Some(0) => self.ends(),
            Some(left) => self.at = At::Data { left, is_chunk: false },
        }
    }

    /// The request does.
    fn ends(&mut self) {
        self.at = At::Head;
        self.is_between = true;
    }
}

impl Head {
    fn line(&mut self, line: &[u8]) {
        // Few lines begin with either letter.
        match line[0] | 0x20 {
            b'c' => {
                let Some(value) = value_of(line, b"content-length") else { return };
                let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).filter(|_| is_number);
                self.is_bad |= self.length.is_some() || number.is_none() || line.len() >= LINE_KEPT;
                self.length = number.or(Some(0));
            }
            b't' => {
                let Some(value) = value_of(line, b"transfer-encoding") else { return };
                let is_chunked = value.eq_ignore_ascii_case(b"chunked") && line.len() < LINE_KEPT;
                self.is_bad |= self.is_chunked || !is_chunked;
                self.is_chunked = true;
            }
            _ => {}
        }
    }
}

/// Without the blanks around it. Tabs stay: allowed as they are, servers differ about them.
fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (has, value) = line.split_at_checked(name.len())?;
    let mut value = value.strip_prefix(b":")?;
    value = value.strip_suffix(b"\r").unwrap_or(value);
    while let Some(rest) = value.strip_prefix(b" ") {
        value = rest;
    }
    while let Some(rest) = value.strip_suffix(b" ") {
        value = rest;
    }
    has.eq_ignore_ascii_case(name).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heads seen, whether the last one is bad, and how much hyper gets of `text` in pieces of `size`.
    fn read(text: &str, size: usize) -> (u64, bool, usize) {
        let mut reader = Reader::default();
        let mut got = 0;
        for mut piece in text.as_bytes().chunks(size) {
            while !piece.is_empty() && !reader.is_bad {
                let read = reader.read(piece);
                (got, piece) = (got + read, &piece[read..]);
            }
        }
        (reader.heads, reader.is_bad, got)
    }

    /// The same in pieces of any size.
    fn assert_reads(text: &str, heads: u64, bad_at: Option<usize>) {
        for size in 1..=text.len() {
            assert_eq!(read(text, size), (heads, bad_at.is_some(), bad_at.unwrap_or(text.len())), "{text:?} by {size}");
        }
    }

    #[test]
    fn heads_are_found_behind_any_body() {
        let get = "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let sized = "PUT / HTTP/1.1\r\ncontent-LENGTH: 30\r\n\r\nGET / HTTP/1.1\r\nHost: a#\r\n\r\n!!";
        let chunked = "PUT / HTTP/1.1\r\nTransfer-Encoding:CHUNKED  \r\n\r\n1a;x\r\nX: 1\r\n\r\nGET # HTTP/1.1\r\n\r\n\r\n0\r\nX: 1\r\n\r\n";
        assert_reads(&format!("{get}{sized}{chunked}{get}{chunked}{sized}{get}"), 7, None);
    }

    #[test]
    fn nothing_is_read_behind_a_bad_head() {
        let good = "PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        let long = format!("GET /{}# HTTP/1.1\r\n", "x".repeat(100));
        let padded = format!("PUT / HTTP/1.1\r\nContent-Length:{}3\r\n", " ".repeat(60));
        let coded = format!("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked{}, gzip\r\n", " ".repeat(60));
        let blank = format!("PUT / HTTP/1.1\r\nTransfer-Encoding:{}chunked\r\n", " ".repeat(60));
        let long_line = format!("GET / HTTP/1.1\r\nX: {}\n", "x".repeat(100));
        for bad in [
            "PUT / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX: 1\r\nContent-Length: x\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: 3\r\nCONTENT-length: 3\r\n",
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "PUT / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n",
            "PUT / HTTP/1.1\r\nTransfer-Encoding:\tchunked\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: 3\t\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: +3\r\n",
            "GET /#x HTTP/1.1\r\n",
            &padded,
            &coded,
            &blank,
            "GET / HTTP/1.1\nHost: a\r\n",
            "GET / HTTP/1.1\r\nHost: a\n",
            &long,
            &long_line,
        ] {
            let head = format!("{good}{bad}\r\n");
            assert_reads(&format!("{head}3\r\nabc\r\n0\r\n\r\n{good}"), 2, Some(head.len()));
        }
        let by_lf = format!("{good}GET / HTTP/1.1\r\nHost: a\r\n\n");
        assert_reads(&format!("{by_lf}{good}"), 2, Some(by_lf.len()));
    }

    #[test]
    fn chunks_that_servers_read_differently_are_the_end() {
        let zeros = format!("{}3\r\n", "0".repeat(99));
        for bad in [zeros.as_str(), "3\n", "0\r\n\n", "0\r\nX: 1\n", "0\r\nX: 1\r\n\n"] {
            assert_lost(&format!("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{bad}"));
        }
    }

    /// Right after `start`, in pieces of any size.
    fn assert_lost(start: &str) {
        for size in 1..200 {
            let mut reader = Reader::default();
            let got: usize =
                format!("{start}abc\r\n0\r\n\r\n").as_bytes().chunks(size).map(|piece| reader.read(piece)).sum();
            assert!(reader.is_lost && !reader.is_bad && got == start.len(), "by {size}: {got}");
        }
    }

    #[test]
    fn each_request_is_told_apart() {
        let judgement = Arc::<Judgement>::default();
        judgement.bad.store(2, Ordering::Release);
        assert_eq!([(); 3].map(|()| judgement.begin().1), [false, true, false]);
    }
}
