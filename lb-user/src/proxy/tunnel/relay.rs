//! Small talk between two plain sockets, on a thread that does nothing else: the events of many tunnels in one loop, without
//! a task to wake for each. Whatever is not small talk goes back to the task that lent the sockets: an end, an error, a
//! burst, a reader that is too slow. See docs/decisions/0036.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::copy::Traffic;
use super::lending::{Lending, Lent};
use crate::address::Unwatched;
use crate::proxy::limits::{RELAY_BURST_CHUNKS, RELAY_EVENTS, TUNNEL_CHUNK_BYTES};

/// What the thread is woken with when it is no longer needed.
const LEAVE: Token = Token(usize::MAX);

/// The relays of one HTTP path: as many threads as the runtime has, from the first tunnel that talks on.
#[derive(Default)]
pub struct Relays {
    pub(super) threads: Mutex<Vec<Arc<Relay>>>,
    /// Counts the tunnels lent so far; they go to the threads in turn.
    pub(super) lent: AtomicUsize,
}

impl Relays {
    /// Has the two sockets' bytes passed on until that is no small talk any more.
    ///
    /// # Errors
    /// The sockets as they are, where the kernel has no thread for them, or no memory to watch them.
    pub fn lend(&self, ends: [Unwatched; 2], traffic: Arc<Traffic>) -> Result<LentPair, [Unwatched; 2]> {
        match self.next() {
            Ok(relay) => relay.take(ends, traffic),
            Err(error) => {
                tracing::debug!(%error, "no thread for tunnels");
                Err(ends)
            }
        }
    }

    /// Tunnels that are lent now.
    #[cfg(test)]
    pub fn open(&self) -> usize {
        self.threads.lock().unwrap().iter().map(|relay| relay.pairs.count()).sum()
    }

    fn next(&self) -> io::Result<Arc<Relay>> {
        let threads = tokio::runtime::Handle::current().metrics().num_workers();
        let number = self.lent.fetch_add(1, Ordering::Relaxed) % threads;
        // A panic cannot leave the list half-changed.
        let mut relays = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(relay) = relays.get(number) {
            return Ok(Arc::clone(relay));
        }
        let relay = Relay::start(relays.len())?;
        relays.push(Arc::clone(&relay));
        Ok(relay)
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        for relay in self.threads.get_mut().unwrap_or_else(PoisonError::into_inner) {
            // It fails only if the thread cannot be woken at all.
            drop(relay.waker.wake());
        }
    }
}

/// One thread and the tunnels that it serves.
pub struct Relay {
    registry: Registry,
    pub(super) waker: Waker,
    pairs: Arc<Lending<Pair, Returned>>,
}

/// A client's end, then its worker's.
pub struct Pair {
    ends: [Unwatched; 2],
    traffic: Arc<Traffic>,
}

/// Sockets that come back.
#[derive(Debug)]
pub struct Returned {
    pub ends: [Unwatched; 2],
    /// Read but not yet written: to the client, and to its worker.
    pub pending: [Bytes; 2],
    /// An error if one end broke. That both go on is not said: an end of file is read again.
    pub result: io::Result<()>,
}

/// A tunnel that a relay serves. Dropped, it closes both sockets.
pub type LentPair = Lent<Pair, Returned>;

impl Relay {
    fn start(number: usize) -> io::Result<Arc<Self>> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let relay = Arc::new(Self { waker: Waker::new(&registry, LEAVE)?, registry, pairs: Arc::default() });
        let own = Arc::clone(&relay);
        thread::Builder::new().name(format!("tunnels-{number}")).spawn(move || {
            let _left = Leaving(&own);
            own.work(poll);
        })?;
        Ok(relay)
    }

    fn take(&self, ends: [Unwatched; 2], traffic: Arc<Traffic>) -> Result<LentPair, [Unwatched; 2]> {
        let lent = self.pairs.lend(Pair { ends, traffic }, |key, pair| {
            // What has come already is told at once.
            let watched = pair.ends.iter().enumerate().try_for_each(|(side, end)| {
                self.registry.register(&mut SourceFd(&end.as_fd().as_raw_fd()), token(key, side), Interest::READABLE)
            });
            watched
                .inspect_err(|error| {
                    tracing::debug!(%error, "a tunnel cannot be watched");
                    self.forget(&pair.ends);
                })
                .is_ok()
        });
        lent.map_err(|pair| pair.ends)
    }

    /// The runtime may watch them again.
    fn forget(&self, ends: &[Unwatched; 2]) {
        for end in ends {
            // It fails where it was not watched.
            drop(self.registry.deregister(&mut SourceFd(&end.as_fd().as_raw_fd())));
        }
    }

    fn work(&self, mut poll: Poll) {
        let mut events = Events::with_capacity(RELAY_EVENTS);
        let mut chunk = vec![0; TUNNEL_CHUNK_BYTES].into_boxed_slice();
        loop {
            match poll.poll(&mut events, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                waited => waited.expect("epoll_wait(2) fails for a signal alone when it is asked in order"),
            }
            let mut pairs = self.pairs.serve();
            for event in &events {
                if event.token() == LEAVE {
                    return;
                }
                let (key, side) = (event.token().0 / 2, event.token().0 % 2);
                // One that is gone was told of in the same breath. If its key is another's by now, that one is read in vain.
                let Some(pair) = pairs.get(key) else { continue };
                let Some(left) = pair.pass(side, event.is_read_closed() || event.is_error(), &mut chunk) else {
                    continue;
                };
                pairs.give_back(key, |Pair { ends, .. }| {
                    self.forget(&ends);
                    left.with(ends, side)
                });
            }
        }
    }
}

/// Whom a thread served is told when it is gone, also by a panic.
struct Leaving<'a>(&'a Relay);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.pairs.end();
    }
}

fn token(key: usize, side: usize) -> Token {
    Token(key * 2 + side)
}

/// Why a tunnel goes back.
enum Left {
    /// An end of file, or more than is for here.
    All,
    /// The reader takes no more than it has.
    Behind(Bytes),
    Broke(io::Error),
}

impl Left {
    fn with(self, ends: [Unwatched; 2], from: usize) -> Returned {
        let mut pending = [Bytes::new(), Bytes::new()];
        let result = match self {
            Self::All => Ok(()),
            Self::Behind(rest) => {
                pending[1 - from] = rest;
                Ok(())
            }
            Self::Broke(error) => Err(error),
        };
        Returned { ends, pending, result }
    }
}

impl Pair {
    /// Passes on what one end has said. `has_ended`: its end, or an error, comes behind it.
    fn pass(&self, from: usize, has_ended: bool, chunk: &mut [u8]) -> Option<Left> {
        let (source, sink) = (&self.ends[from], &self.ends[1 - from]);
        for _ in 0..RELAY_BURST_CHUNKS {
            let read = match recv(source, &mut *chunk, RecvFlags::empty()) {
                Ok((0, _)) => return Some(Left::All),
                Ok((read, _)) => read,
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR) => continue,
                Err(error) => return Some(Left::Broke(error.into())),
            };
            self.traffic.count(from, read);
            let written = match send(sink, &chunk[..read], SendFlags::NOSIGNAL) {
                Ok(written) => written,
                Err(Errno::AGAIN | Errno::INTR) => 0,
                Err(error) => return Some(Left::Broke(error.into())),
            };
            if written < read {
                return Some(Left::Behind(Bytes::copy_from_slice(&chunk[written..read])));
            }
            // The rest of what had come when this was told; more is told anew.
            if read < chunk.len() && !has_ended {
                return None;
            }
        }
        Some(Left::All)
    }
}
