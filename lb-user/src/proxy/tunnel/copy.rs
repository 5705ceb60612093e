//! Bytes both ways between any two streams.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout};

use crate::proxy::limits::{LEARN_TIME, TUNNEL_CHUNK_BYTES, TUNNEL_HALF_CLOSED};

/// The ends of a tunnel, where there is one of a thing for each.
pub const CLIENT: usize = 0;
pub const WORKER: usize = 1;

/// Bytes that came from either end.
#[derive(Default)]
pub struct Traffic([AtomicU64; 2]);

impl Traffic {
    pub fn of(&self, end: usize) -> u64 {
        self.0[end].load(Ordering::Relaxed)
    }

    pub fn of_both(&self) -> (u64, u64) {
        (self.of(CLIENT), self.of(WORKER))
    }

    /// So many more. Only one at a time passes bytes on, so that this is no atomic addition.
    pub fn count(&self, end: usize, more: usize) {
        self.0[end].store(self.of(end) + more as u64, Ordering::Relaxed);
    }
}

/// Hears what the worker says, until it says false.
type Hear<'a> = dyn FnMut(&[u8]) -> bool + Send + 'a;

/// Whoever hears what the worker says, for [`LEARN_TIME`] at most.
pub struct Ear<'a> {
    hear: Box<Hear<'a>>,
    until: Instant,
}

impl<'a> Ear<'a> {
    /// `hear` says false when it has heard enough.
    pub fn new(hear: impl FnMut(&[u8]) -> bool + Send + 'a) -> Self {
        Self { hear: Box::new(hear), until: Instant::now() + LEARN_TIME }
    }

    /// Whether it wants to hear more.
    pub fn hears(&mut self, said: &[u8]) -> bool {
        (self.hear)(said)
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

/// How copying stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Both directions have ended, or one has and the other went on for longer than [`TUNNEL_HALF_CLOSED`].
    Ended,
    /// All that was said has been passed on, something at least, and nobody listens in.
    Calm,
}

/// Copies both ways until that ends, or something breaks. `pending` goes first, to the client and to its worker. What the
/// worker says is heard by `ear`. Stops when it is calm only if it `may_rest`.
pub async fn copy<A, B>(
    client: &mut A,
    worker: &mut B,
    pending: [Bytes; 2],
    traffic: &Traffic,
    ear: &mut Option<Ear<'_>>,
    may_rest: bool,
) -> io::Result<Stopped>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let [to_client, to_worker] = pending;
    let mut forth = Flow { from: CLIENT, pending: to_worker, state: State::Reading };
    let mut back = Flow { from: WORKER, pending: to_client, state: State::Reading };
    // A stream that the runtime has only begun to watch seems silent, whatever waits in it.
    let before = traffic.of_both();
    let mut poll = |cx: &mut Context<'_>, both: bool| {
        ear.take_if(|ear| ear.is_over());
        let is_forth_done = forth.poll(cx, client, worker, traffic, &mut None)?.is_ready();
        let is_back_done = back.poll(cx, worker, client, traffic, ear)?.is_ready();
        if is_forth_done && is_back_done {
            return Poll::Ready(Ok(Some(Stopped::Ended)));
        }
        if is_forth_done || is_back_done {
            return if both { Poll::Pending } else { Poll::Ready(Ok(None)) };
        }
        if may_rest && ear.is_none() && forth.is_idle() && back.is_idle() && traffic.of_both() != before {
            return Poll::Ready(io::Result::Ok(Some(Stopped::Calm)));
        }
        Poll::Pending
    };
    let stopped = match poll_fn(|cx| poll(cx, false)).await? {
        None => timeout(TUNNEL_HALF_CLOSED, poll_fn(|cx| poll(cx, true))).await.unwrap_or(Ok(None))?,
        stopped => stopped,
    };
    Ok(stopped.unwrap_or(Stopped::Ended))
}

/// One direction of a tunnel.
struct Flow {
    from: usize,
    /// Read but not yet written.
    pending: Bytes,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    Reading,
    /// The reader is at its end; the writer must be told.
    Ending,
    Done,
}

thread_local! {
    /// Data is in here only within one poll; what cannot be written at once moves to the flow that it belongs to.
    static CHUNK: RefCell<Box<[u8]>> = RefCell::new(vec![0; TUNNEL_CHUNK_BYTES].into());
}

impl Flow {
    /// Whether, after a poll that is pending, it waits for its reader.
    fn is_idle(&self) -> bool {
        self.state == State::Reading && self.pending.is_empty()
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        traffic: &Traffic,
        ear: &mut Option<Ear<'_>>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while self.pending.has_remaining() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.pending))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => self.pending.advance(written),
                }
            }
            match self.state {
                State::Reading => {
                    // Frees what a burst left behind: an empty slice still owns its allocation.
                    self.pending = Bytes::new();
                    ready!(CHUNK.with_borrow_mut(|chunk| self.pass_chunk(cx, chunk, from, to, traffic, ear)))?;
                }
                State::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Done;
                }
                State::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Reads once and writes what it can.
    fn pass_chunk<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut [u8],
        from: &mut R,
        to: &mut W,
        traffic: &Traffic,
        ear: &mut Option<Ear<'_>>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut read = ReadBuf::new(chunk);
        ready!(Pin::new(from).poll_read(cx, &mut read))?;
        let data = read.filled();
        if data.is_empty() {
            self.state = State::Ending;
            return Poll::Ready(Ok(()));
        }
        traffic.count(self.from, data.len());
        if ear.as_mut().is_some_and(|ear| !ear.hears(data)) {
            *ear = None;
        }
        let written = match Pin::new(to).poll_write(cx, data) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        if written < data.len() {
            self.pending = Bytes::copy_from_slice(&data[written..]);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::super::refreshed;
    use super::*;

    #[tokio::test]
    async fn bytes_pass_both_ways_through_pipes_smaller_than_a_chunk() {
        let (mut client, mut client_side) = duplex(7);
        let (mut worker, mut worker_side) = duplex(5);
        let tunnel = tokio::spawn(async move {
            let (early, greeting) = (Bytes::from_static(b"early "), Bytes::from_static(b"greeting "));
            copy(&mut client_side, &mut worker_side, [greeting, early], &Traffic::default(), &mut None, false).await
        });
        let sent: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let upload = sent.clone();
        let client = tokio::spawn(async move {
            let mut answer = String::new();
            client.write_all(&upload).await.unwrap();
            client.shutdown().await.unwrap();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        });
        let mut received = Vec::new();
        worker.read_to_end(&mut received).await.unwrap();
        assert_eq!(&received[..6], b"early ");
        assert_eq!(&received[6..], sent);
        worker.write_all(b"after the client's end").await.unwrap();
        worker.shutdown().await.unwrap();
        assert_eq!(client.await.unwrap(), "greeting after the client's end");
        assert_eq!(tunnel.await.unwrap().unwrap(), Stopped::Ended);
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_tunnel_ends_after_its_time() {
        let (mut client, mut client_side) = duplex(64);
        let (_silent, mut worker_side) = duplex(64);
        client.shutdown().await.unwrap();
        let pending = Default::default();
        copy(&mut client_side, &mut worker_side, pending, &Traffic::default(), &mut None, true).await.unwrap();
    }
    /// It stayed with its own task for ever, with what had been said in memory.
    #[tokio::test(start_paused = true)]
    async fn a_worker_that_says_little_is_not_listened_to_for_ever() {
        let (_client, mut client_side) = duplex(64);
        let (mut worker, mut worker_side) = duplex(64);
        worker.write_all(b"little").await.unwrap();
        let (kept, pending, traffic) = (Arc::new(()), Default::default(), Traffic::default());
        let held = Arc::clone(&kept);
        let mut ear = Some(Ear::new(move |_| Arc::strong_count(&held) > 0));
        let tunnel = copy(&mut client_side, &mut worker_side, pending, &traffic, &mut ear, true);
        assert_eq!(refreshed(tunnel, || ()).await.unwrap(), Stopped::Calm);
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}
