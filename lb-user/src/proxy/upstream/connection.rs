//! A connection to a worker: one request at a time, and its answer as it arrives.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{Method, Response};
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;

use super::Failed;
use super::framing::{Framing, Piece};
use super::head::{self, Head};
use super::pool::Pool;
use super::sending::{Sending, Unsent};
use crate::address::Stream;
use crate::proxy::body::{Fault, Passage};
use crate::proxy::counters::{Counter, Counters};
use crate::proxy::limits::{ANSWER_CHUNK_BYTES, BUFFER_BYTES_MAX, UPLOAD_STALL};

/// Why a request has no answer.
pub enum Unanswered {
    /// The worker closed the connection without a byte of one.
    Silence(Failed),
    Broken(Failed),
    Body(Fault),
}

/// What of a connection is read.
enum Side {
    Whole(Stream),
    /// The request's body is still on its way.
    Half(ReadHalf<Stream>, Upload),
}

/// The rest of a body, sent by a task of its own: a client may send all of it before it takes anything of the answer.
struct Upload {
    task: JoinHandle<Option<WriteHalf<Stream>>>,
    passage: Option<Arc<Passage>>,
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upload {
    /// What it was sent on, when all of it has been, behind its answer. Nobody waits for more of it, so that it must go on.
    async fn ends(mut self) -> Option<WriteHalf<Stream>> {
        let stalls = async {
            match &self.passage {
                Some(passage) => passage.stalls(UPLOAD_STALL).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            sent = &mut self.task => sent.ok().flatten(),
            () = stalls => None,
        }
    }
}

struct Reader {
    side: Side,
    /// What has come and is not taken.
    come: Bytes,
    /// The last read filled all the room it had.
    is_flooded: bool,
}

thread_local! {
    /// Where answers are read into, and copied from: so that no connection holds a buffer while its worker thinks.
    static CHUNK: RefCell<Box<[u8]>> = RefCell::new(vec![0; ANSWER_CHUNK_BYTES].into());
}

impl Reader {
    /// Reads more, behind what has come.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.is_flooded {
            // Larger pieces, and no copy of them.
            let mut more = BytesMut::with_capacity(self.come.len() + BUFFER_BYTES_MAX);
            more.extend_from_slice(&self.come);
            let read = match &mut self.side {
                Side::Whole(stream) => pin!(stream.read_buf(&mut more)).poll(cx),
                Side::Half(stream, _) => pin!(stream.read_buf(&mut more)).poll(cx),
            };
            self.is_flooded = read.is_ready() && more.len() == more.capacity();
            let read = ready!(read)?;
            self.come = more.freeze();
            return Poll::Ready(Ok(read));
        }
        CHUNK.with_borrow_mut(|chunk| {
            let mut read = ReadBuf::new(chunk);
            match &mut self.side {
                Side::Whole(stream) => ready!(Pin::new(stream).poll_read(cx, &mut read))?,
                Side::Half(stream, _) => ready!(Pin::new(stream).poll_read(cx, &mut read))?,
            }
            let more = read.filled();
            self.is_flooded = more.len() == ANSWER_CHUNK_BYTES;
            self.come = match self.come.is_empty() {
                true => Bytes::copy_from_slice(more),
                false => [&self.come, more].concat().into(),
            };
            Poll::Ready(Ok(more.len()))
        })
    }

    /// An answer has begun and not ended: its worker may hold back the rest until it is told that this has come.
    fn acknowledge(&self) {
        // What is sent beside it acknowledges, too.
        if let Side::Whole(stream) = &self.side {
            stream.acknowledge();
        }
    }
}

/// Sends the request and waits for the head of its answer.
pub async fn exchange(
    stream: Stream,
    asked: &Method,
    mut sending: Box<Sending>,
    home: Option<Arc<Pool>>,
    counters: &Arc<Counters>,
) -> Result<Response<Arriving>, (Box<Sending>, Unanswered)> {
    let mut reader = Reader { side: Side::Whole(stream), come: Bytes::new(), is_flooded: false };
    let mut sent = None;
    let answered = poll_fn(|cx| {
        if sent.is_none()
            && let Side::Whole(stream) = &mut reader.side
            && let Poll::Ready(ended) = sending.poll(cx, stream)
        {
            match ended {
                Err(Unsent::Body(fault)) => return Poll::Ready(Err(Unanswered::Body(fault))),
                // What the worker said before it closed may be why.
                ended => sent = Some(ended.is_ok()),
            }
        }
        loop {
            let has_begun = !reader.come.is_empty();
            let silent = |failed| if has_begun { Unanswered::Broken(failed) } else { Unanswered::Silence(failed) };
            let Poll::Ready(more) = reader.poll_more(cx) else {
                if has_begun {
                    reader.acknowledge();
                }
                return Poll::Pending;
            };
            match more {
                Ok(0) => return Poll::Ready(Err(silent(Failed::Ended))),
                Err(error) => return Poll::Ready(Err(silent(Failed::Io(error)))),
                Ok(_) => match head::take(asked, &mut reader.come) {
                    Ok(None) => {}
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Err(failed) => return Poll::Ready(Err(Unanswered::Broken(failed))),
                },
            }
        }
    })
    .await;
    let Head { response, framing, keeps_alive } = match answered {
        Ok(head) => head,
        Err(unanswered) => return Err((sending, unanswered)),
    };
    if sent.is_none() {
        reader = reader.beside(sending);
    }
    let home = home.filter(|_| keeps_alive && sent != Some(false));
    let counters = Arc::clone(counters);
    let mut arriving = Arriving { reader: Some(reader), framing, home, broken: None, counters };
    arriving.release_at_end();
    Ok(response.map(|()| arriving))
}

impl Reader {
    /// Goes on sending beside the answer.
    fn beside(self, mut sending: Box<Sending>) -> Self {
        let Side::Whole(stream) = self.side else { return self };
        let (reads, mut writes) = tokio::io::split(stream);
        let passage = sending.passage();
        let task = tokio::spawn(async move {
            match poll_fn(|cx| sending.poll(cx, &mut writes)).await {
                Ok(()) => Some(writes),
                // The worker must not wait for what will not come; that it ends its answer, too, is up to it.
                Err(Unsent::Body(_)) => writes.shutdown().await.ok().and(None),
                Err(Unsent::Connection) => None,
            }
        });
        Self { side: Side::Half(reads, Upload { task, passage }), ..self }
    }
}

/// The body of an answer. Its connection goes back to its pool behind it, or is closed when this is dropped.
pub struct Arriving {
    /// None when all has arrived, or it broke.
    reader: Option<Reader>,
    framing: Framing,
    home: Option<Arc<Pool>>,
    /// To be told the next time.
    broken: Option<Failed>,
    counters: Arc<Counters>,
}

impl Arriving {
    /// The connection, and what came behind the head: for whoever speaks another protocol from here on.
    pub fn into_stream(self) -> Option<(Stream, Bytes)> {
        let reader = self.reader?;
        match reader.side {
            Side::Whole(stream) => Some((stream, reader.come)),
            Side::Half(..) => None,
        }
    }

    /// Gives the connection back when nothing is to come any more. What stands behind an answer is nobody's.
    fn release_at_end(&mut self) {
        if self.framing != Framing::Done {
            return;
        }
        let Some(pool) = self.home.take() else { return };
        let Some(reader) = self.reader.take_if(|reader| reader.come.is_empty()) else { return };
        match reader.side {
            Side::Whole(stream) => pool.put(stream),
            Side::Half(reads, upload) => drop(tokio::spawn(async move {
                if let Some(writes) = upload.ends().await {
                    pool.put(reads.unsplit(writes));
                }
            })),
        }
    }

    fn breaks(&mut self, cx: &mut Context<'_>, failed: Failed) {
        self.counters.add(Counter::UpstreamBroke);
        self.reader = None;
        // Not at once: hyper would drop a head that it has not written yet, and the client would see no answer at all.
        self.broken = Some(failed);
        cx.waker().wake_by_ref();
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        let this = self.get_mut();
        if let Some(failed) = this.broken.take() {
            return Poll::Ready(Some(Err(failed)));
        }
        loop {
            let Some(reader) = &mut this.reader else { return Poll::Ready(None) };
            let piece = match this.framing.take(&mut reader.come) {
                Ok(piece) => piece,
                Err(failed) => {
                    this.breaks(cx, failed);
                    return Poll::Pending;
                }
            };
            let frame = match piece {
                Piece::Data(data) => Some(Frame::data(data)),
                Piece::Trailers(trailers) => Some(Frame::trailers(trailers)),
                Piece::End => None,
                Piece::Missing => match reader.poll_more(cx) {
                    Poll::Pending => {
                        reader.acknowledge();
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(0)) if this.framing == Framing::UntilClose => {
                        this.framing = Framing::Done;
                        this.reader = None;
                        None
                    }
                    Poll::Ready(Ok(0)) => {
                        this.breaks(cx, Failed::Ended);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(_)) => continue,
                    Poll::Ready(Err(error)) => {
                        this.breaks(cx, Failed::Io(error));
                        return Poll::Pending;
                    }
                },
            };
            this.release_at_end();
            return Poll::Ready(frame.map(Ok));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.framing == Framing::Done && self.broken.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.framing {
            Framing::Done => SizeHint::with_exact(0),
            Framing::Length(left) => SizeHint::with_exact(left),
            Framing::Chunked(_) | Framing::UntilClose => SizeHint::default(),
        }
    }
}
