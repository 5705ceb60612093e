//! Tunnels between real sockets, which wander between their task and a relay.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use super::copy::{CLIENT, Traffic, WORKER};
use super::{Relays, carry};
use crate::address::Stream;
use crate::proxy::stream::ClientStream;
use crate::proxy::testing::{soon, until};

/// More than both sockets' buffers take, and than a relay passes on in one go.
const BURST_BYTES: usize = 16 * 1024 * 1024;

/// A tunnel, and what is at its ends.
struct Tunnel {
    client: TcpStream,
    worker: Stream,
    traffic: Arc<Traffic>,
    task: JoinHandle<std::io::Result<()>>,
}

async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    // As homing has it on its own.
    for stream in [&near, &far] {
        stream.set_nodelay(true).unwrap();
    }
    (near, far)
}

impl Tunnel {
    async fn open(relays: &Arc<Relays>, is_unix: bool) -> Self {
        let (client, client_side) = tcp().await;
        let (worker, worker_side) = if is_unix {
            let (near, far) = UnixStream::pair().unwrap();
            (Stream::Unix(near), Stream::Unix(far))
        } else {
            let (near, far) = tcp().await;
            (Stream::Tcp(near), Stream::Tcp(far))
        };
        let traffic = Arc::<Traffic>::default();
        let (relays, counted) = (Arc::clone(relays), Arc::clone(&traffic));
        let task = tokio::spawn(async move {
            let pending = [Bytes::new(), Bytes::new()];
            carry(&relays, ClientStream::Plain(client_side), worker_side, pending, &counted, None).await
        });
        Self { client, worker, traffic, task }
    }

    /// A message each way.
    async fn talk(&mut self, message: &[u8]) {
        let mut heard = vec![0; message.len()];
        self.client.write_all(message).await.unwrap();
        soon("the client's message", self.worker.read_exact(&mut heard)).await.unwrap();
        assert_eq!(heard, message);
        heard.fill(0);
        self.worker.write_all(message).await.unwrap();
        soon("the worker's message", self.client.read_exact(&mut heard)).await.unwrap();
        assert_eq!(heard, message);
    }

    /// Open, and with a relay.
    async fn lent(relays: &Arc<Relays>, is_unix: bool) -> Self {
        let mut tunnel = Self::open(relays, is_unix).await;
        let before = relays.open();
        tunnel.talk(b"hello").await;
        until("a relay to have it", || relays.open() > before).await;
        tunnel
    }
}

#[tokio::test]
async fn small_talk_is_a_relays_and_is_counted() {
    for is_unix in [false, true] {
        let relays = Arc::<Relays>::default();
        let mut tunnel = Tunnel::lent(&relays, is_unix).await;
        for number in 0..100_u8 {
            tunnel.talk(&[number; 64]).await;
        }
        assert_eq!((relays.open(), relays.lent.load(Ordering::Relaxed)), (1, 1), "it stayed there");
        assert_eq!(tunnel.traffic.of_both(), (6_405, 6_405));
        drop((tunnel.client, tunnel.worker));
        soon("the end", tunnel.task).await.unwrap().unwrap();
        assert_eq!(relays.open(), 0);
    }
}

#[tokio::test]
async fn bursts_pass_whole_both_ways_at_once_and_small_talk_is_a_relays_again() {
    for is_unix in [false, true] {
        let relays = Arc::<Relays>::default();
        let mut tunnel = Tunnel::lent(&relays, is_unix).await;
        let bytes: Arc<[u8]> = (0..BURST_BYTES).map(|n| (n * 31 + n / 251) as u8).collect();
        let (mut client_reads, mut client_writes) = tunnel.client.split();
        let (mut worker_reads, mut worker_writes) = tokio::io::split(tunnel.worker);
        let mut at_client = vec![0; BURST_BYTES];
        let mut at_worker = vec![0; BURST_BYTES];
        soon("both bursts", async {
            tokio::try_join!(
                client_writes.write_all(&bytes),
                worker_writes.write_all(&bytes),
                client_reads.read_exact(&mut at_client),
                worker_reads.read_exact(&mut at_worker),
            )
        })
        .await
        .unwrap();
        assert!(at_client == *bytes && at_worker == *bytes, "what came is not what was sent");
        tunnel.worker = worker_reads.unsplit(worker_writes);
        assert_eq!(tunnel.traffic.of_both(), (BURST_BYTES as u64 + 5, BURST_BYTES as u64 + 5));
        let moved = relays.lent.load(Ordering::Relaxed);
        assert!(moved < 1_000, "it wandered {moved} times");
        tunnel.talk(b"calm again").await;
        until("a relay to have it again", || relays.open() == 1).await;
        tunnel.talk(b"and on").await;
        tunnel.task.abort();
    }
}

#[tokio::test]
async fn a_reader_that_pauses_loses_nothing() {
    let relays = Arc::<Relays>::default();
    let mut tunnel = Tunnel::lent(&relays, false).await;
    let sent: Vec<u8> = (0..BURST_BYTES).map(|n| (n / 7) as u8).collect();
    let copy = sent.clone();
    let writer = tokio::spawn(async move {
        tunnel.worker.write_all(&copy).await.unwrap();
        tunnel.worker
    });
    // The sender and the tunnel are stuck with what they have.
    until("the relay to give it up", || relays.open() == 0).await;
    let mut received = vec![0; BURST_BYTES];
    for piece in received.chunks_mut(BURST_BYTES / 8) {
        tokio::time::sleep(Duration::from_millis(5)).await;
        soon("the next piece", tunnel.client.read_exact(piece)).await.unwrap();
    }
    assert!(received == sent, "what came is not what was sent");
    tunnel.worker = writer.await.unwrap();
    tunnel.talk(b"calm again").await;
    until("a relay to have it again", || relays.open() == 1).await;
}

#[tokio::test]
async fn a_tunnel_with_one_end_closed_stays_with_its_task_and_goes_on_the_other_way() {
    for is_unix in [false, true] {
        let relays = Arc::<Relays>::default();
        let mut tunnel = Tunnel::lent(&relays, is_unix).await;
        tunnel.client.write_all(b"last words").await.unwrap();
        tunnel.client.shutdown().await.unwrap();
        let mut heard = String::new();
        soon("the end", tunnel.worker.read_to_string(&mut heard)).await.unwrap();
        assert_eq!(heard, "last words");
        for _ in 0..20 {
            tunnel.worker.write_all(b"more").await.unwrap();
            soon("more", tunnel.client.read_exact(&mut [0; 4])).await.unwrap();
        }
        // Once it went to and fro without end, and took a whole core.
        assert_eq!((relays.open(), relays.lent.load(Ordering::Relaxed)), (0, 1));
        tunnel.worker.shutdown().await.unwrap();
        soon("the tunnel's end", tunnel.task).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_reset_reaches_the_other_end() {
    let relays = Arc::<Relays>::default();
    let mut tunnel = Tunnel::lent(&relays, false).await;
    socket2::SockRef::from(&tunnel.client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(tunnel.client);
    assert_eq!(soon("the worker's end", tunnel.worker.read(&mut [0; 9])).await.unwrap(), 0);
    soon("the tunnel's end", tunnel.task).await.unwrap().unwrap_err();
    assert_eq!(relays.open(), 0);
}

#[tokio::test]
async fn a_tunnel_that_is_broken_off_closes_both_ends() {
    let relays = Arc::<Relays>::default();
    let mut tunnel = Tunnel::lent(&relays, false).await;
    let mut other = Tunnel::lent(&relays, false).await;
    tunnel.task.abort();
    for end in [tunnel.client.read(&mut [0; 9]).await, tunnel.worker.read(&mut [0; 9]).await] {
        assert_eq!(end.unwrap(), 0);
    }
    assert_eq!(relays.open(), 1);
    other.talk(b"still here").await;
    assert_eq!(other.traffic.of(CLIENT), other.traffic.of(WORKER));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tunnels_that_come_and_go_do_not_get_each_others_bytes() {
    let relays = Arc::<Relays>::default();
    let mut talkers = JoinSet::new();
    for seed in 0..16 {
        let relays = Arc::clone(&relays);
        talkers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            for _ in 0..25 {
                let mut tunnel = Tunnel::open(&relays, random.bool()).await;
                for _ in 0..random.u8(1..20) {
                    let length = if random.u8(..) < 16 { random.usize(1..300_000) } else { random.usize(1..2_000) };
                    // Too long to be taken at once: read while it is written.
                    let message = vec![random.u8(..); length];
                    let mut heard = vec![0; length];
                    let (to, from) = (tunnel.client.write_all(&message), tunnel.worker.read_exact(&mut heard));
                    soon("a message", async { tokio::try_join!(to, from) }).await.unwrap();
                    assert_eq!(heard, message);
                    tunnel.talk(&message[..length.min(100)]).await;
                }
                match random.u8(..3) {
                    0 => tunnel.task.abort(),
                    1 => drop(tunnel.client),
                    _ => drop(tunnel.worker),
                }
            }
        });
    }
    while let Some(talker) = talkers.join_next().await {
        talker.unwrap();
    }
    until("all to be closed", || relays.open() == 0).await;
}

#[tokio::test]
async fn the_threads_end_with_the_path_that_they_serve() {
    let relays = Arc::<Relays>::default();
    let tunnel = Tunnel::lent(&relays, false).await;
    let relay = Arc::downgrade(&relays.threads.lock().unwrap()[0]);
    tunnel.task.abort();
    drop(soon("the task's end", tunnel.task).await);
    drop(relays);
    until("the thread's end", || relay.strong_count() == 0).await;
}

#[tokio::test]
async fn a_tunnel_ends_when_its_relay_is_gone() {
    let relays = Relays::default();
    let ((_client, client_side), (_worker, worker_side)) = (tcp().await, tcp().await);
    let ends = [client_side, worker_side].map(|side| Stream::Tcp(side).unwatch().unwrap());
    let Ok(lent) = relays.lend(ends, Arc::default()) else { panic!("there is a thread") };
    drop(relays);
    assert!(soon("the end", lent.returned()).await.is_none());
}

#[tokio::test]
async fn tunnels_were_lent_to_a_thread_that_was_gone_and_hung() {
    let relays = Arc::<Relays>::default();
    let tunnel = Tunnel::lent(&relays, false).await;
    let relay = Arc::clone(&relays.threads.lock().unwrap()[0]);
    // As a panic would end it.
    relay.waker.wake().unwrap();
    let error = soon("the end", tunnel.task).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the thread for tunnels is gone");
    let mut later = Tunnel::open(&relays, false).await;
    for _ in 0..20 {
        later.talk(b"by its task").await;
    }
    assert_eq!(relays.open(), 0);
}
