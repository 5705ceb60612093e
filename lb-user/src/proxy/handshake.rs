//! TLS with a client: in time, not too many at once, and a word to those who come without.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::ServerConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::Inner;
use super::counters::Counter;
use super::limits::{
    HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, HANDSHAKES_OF_A_CLIENT_MAX, HANDSHAKES_OF_A_CLIENT_PART, LINGER,
    LINGER_BYTES_MAX,
};
use super::patience::timeout;
use super::stream::ClientStream;

/// What every TLS connection begins with: the type of a handshake record (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;

const PLAIN: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 52\r\n\
                     connection: close\r\n\r\nThis port speaks HTTPS: use https:// for its pages.\n";

/// Handshakes under way: so many over all listeners, and so many of them one client's, so that one who begins handshakes
/// and does not go on leaves room for others. Who finds none waits, unless so many others are there that it is not for him to.
pub struct Handshakes {
    all: Arc<Semaphore>,
    clients: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
}

impl Default for Handshakes {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(HANDSHAKES_MAX)), clients: Mutex::default() }
    }
}

impl Handshakes {
    /// Room for one more, until it is dropped. `client`: unless it is a proxy, which is many.
    ///
    /// # Errors
    /// The client has [`HANDSHAKES_OF_A_CLIENT_PART`] of what is left.
    async fn one(&self, client: Option<IpAddr>) -> io::Result<[Option<OwnedSemaphorePermit>; 2]> {
        let own = match client {
            Some(client) => Some(self.one_of(household(client)).await?),
            None => None,
        };
        let all = Arc::clone(&self.all).acquire_owned().await.map_err(io::Error::other)?;
        Ok([own, Some(all)])
    }

    /// One of the client's own.
    async fn one_of(&self, client: IpAddr) -> io::Result<OwnedSemaphorePermit> {
        let semaphore = self.of(client);
        let own = Arc::clone(&semaphore).acquire_owned().await.map_err(io::Error::other)?;
        let its = HANDSHAKES_OF_A_CLIENT_MAX - semaphore.available_permits();
        if its > self.all.available_permits() / HANDSHAKES_OF_A_CLIENT_PART {
            return Err(io::Error::other("too many handshakes are under way, and too many of them the client's"));
        }
        Ok(own)
    }

    #[cfg(test)]
    pub fn under_way(&self) -> usize {
        HANDSHAKES_MAX - self.all.available_permits()
    }

    fn of(&self, client: IpAddr) -> Arc<Semaphore> {
        // A panic cannot leave the map half-changed.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = clients.get(&client).and_then(Weak::upgrade) {
            return own;
        }
        if clients.len() == clients.capacity() {
            clients.retain(|_, own| own.strong_count() > 0);
            let living = clients.len();
            clients.reserve(living + 1);
        }
        let own = Arc::new(Semaphore::new(HANDSHAKES_OF_A_CLIENT_MAX));
        clients.insert(client, Arc::downgrade(&own));
        own
    }
}

/// What one subscriber has: an address, or by IPv6 a network of /64.
fn household(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// The client's stream in the clear. `client`: unless it is a proxy, which is many. `None`: there will be none, counted.
pub async fn shake_hands(
    proxy: &Inner,
    config: Arc<ServerConfig>,
    client: Option<IpAddr>,
    stream: TcpStream,
) -> Option<ClientStream> {
    let hands = async {
        let mut first = [0];
        // Who says nothing takes nobody's room.
        if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE {
            return Ok(Err(stream));
        }
        let _one = proxy.handshakes.one(client).await?;
        TlsAcceptor::from(config).accept(stream).await.map(Ok)
    };
    match timeout(HANDSHAKE_TIMEOUT, hands).await {
        Ok(Ok(stream)) => {
            proxy.counters.add(Counter::TlsHandshakes);
            return Some(ClientStream::Tls(Box::new(stream)));
        }
        Ok(Err(stream)) => {
            proxy.counters.add(Counter::TlsPlain);
            drop(timeout(LINGER, explain(stream)).await);
        }
        Err(error) => {
            proxy.counters.add(Counter::TlsFailed);
            tracing::debug!(%error, "TLS handshake failed");
        }
    }
    None
}

/// Answers, and reads what was asked: closed with something unread, the kernel would reset the connection and take the
/// answer with it.
async fn explain(mut stream: TcpStream) -> io::Result<()> {
    use tokio::io::AsyncReadExt as _;
    stream.write_all(PLAIN.as_bytes()).await?;
    stream.shutdown().await?;
    let mut rest = (&mut stream).take(LINGER_BYTES_MAX);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.map(drop)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::task::unconstrained;

    use super::*;

    #[test]
    fn the_answer_is_as_long_as_it_says() {
        let (head, body) = PLAIN.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
    }
    #[test]
    fn one_client_does_not_take_all_the_room_there_is() {
        let handshakes = Handshakes::default();
        let greedy = |n: usize| IpAddr::from([0x2001, 0xdb8, 0, 7, 0, 0, 0, n as u16]);
        let at_once = |client| unconstrained(handshakes.one(client)).now_or_never();
        let held: Vec<_> = (0..HANDSHAKES_OF_A_CLIENT_MAX).map(|n| at_once(Some(greedy(n)))).collect();
        assert!(held.iter().all(Option::is_some) && at_once(Some(greedy(0))).is_none(), "one more waits");
        for other in [Some([192, 0, 2, 1].into()), Some([0x2001, 0xdb8, 0, 8, 0, 0, 0, 0].into()), None] {
            assert!(at_once(other).is_some(), "{other:?}");
        }
        drop(held);
        assert!(at_once(Some(greedy(0))).is_some());
    }

    /// Each of them had its 256, sixteen had all there is, and everybody else waited until it was too late.
    #[test]
    fn a_thousand_who_begin_handshakes_and_do_not_go_on_leave_room_for_others() {
        for greedy in [16, 100, 400] {
            let handshakes = Handshakes::default();
            let at_once = |n: u32| unconstrained(handshakes.one(Some(IpAddr::V4(n.into())))).now_or_never();
            let mut held = Vec::new();
            for _ in 0..HANDSHAKES_OF_A_CLIENT_MAX {
                held.extend((0..greedy).filter_map(|n| at_once(n)?.ok()));
            }
            assert!(held.len() > HANDSHAKES_MAX / 2, "{greedy}: {}", held.len());
            let refused = at_once(0).expect("nobody waits").expect_err("there is no room for it").to_string();
            assert_eq!(refused, "too many handshakes are under way, and too many of them the client's");
            let others: Vec<_> = (0..32).map(|n| at_once(greedy + n)).collect();
            assert!(others.iter().all(|one| matches!(one, Some(Ok(_)))), "{greedy}");
        }
    }

    #[test]
    fn clients_that_are_gone_are_forgotten() {
        let handshakes = Handshakes::default();
        for n in 0..100_000_u32 {
            handshakes.of(IpAddr::V4(n.into()));
        }
        assert!(handshakes.clients.lock().unwrap().len() < 100);
    }
}
