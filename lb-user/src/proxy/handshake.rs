//! TLS with a client: in time, not too many at once, and a word to those who come without.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::Inner;
use super::counters::Counter;
use super::limits::{HANDSHAKE_TIMEOUT, LINGER, LINGER_BYTES_MAX};
use super::stream::ClientStream;

/// What every TLS connection begins with: the type of a handshake record (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;

const PLAIN: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 52\r\n\
                     connection: close\r\n\r\nThis port speaks HTTPS: use https:// for its pages.\n";

/// The client's stream in the clear. `None`: there will be none, counted.
pub async fn shake_hands(proxy: &Inner, config: Arc<ServerConfig>, stream: TcpStream) -> Option<ClientStream> {
    let hands = async {
        let _one = proxy.handshakes.acquire().await.map_err(io::Error::other)?;
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE {
            return Ok(Err(stream));
        }
        TlsAcceptor::from(config).accept(stream).await.map(Ok)
    };
    match timeout(HANDSHAKE_TIMEOUT, hands).await {
        Ok(Ok(Ok(stream))) => {
            proxy.counters.add(Counter::TlsHandshakes);
            return Some(ClientStream::Tls(Box::new(stream)));
        }
        Ok(Ok(Err(stream))) => {
            proxy.counters.add(Counter::TlsPlain);
            drop(timeout(LINGER, explain(stream)).await);
        }
        Ok(Err(error)) => {
            proxy.counters.add(Counter::TlsFailed);
            tracing::debug!(%error, "TLS handshake failed");
        }
        Err(_) => proxy.counters.add(Counter::TlsFailed),
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
    use super::*;

    #[test]
    fn the_answer_is_as_long_as_it_says() {
        let (head, body) = PLAIN.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
    }
}
