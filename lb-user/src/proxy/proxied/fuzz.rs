//! What `proxied` promises of any connection: who is named is who a plain reading of the protocol names, and what comes
//! after the header is left to others, however the bytes come.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::*;

/// The first byte says after how many of the others there is a pause.
pub fn proxied(bytes: &[u8]) {
    let Some((&pause, bytes)) = bytes.split_first() else { return };
    let expected = named(bytes);
    let (read, rest) = RUNTIME.with(|runtime| runtime.block_on(read_of(bytes, usize::from(pause))));
    match (expected, read) {
        (Some((source, length)), Ok(read)) => {
            assert_eq!(read, source);
            assert_eq!(rest, bytes[length..], "what follows is left");
        }
        (None, Err(_)) => {}
        (expected, read) => panic!("{read:?} in place of {expected:?}"),
    }
}

std::thread_local! {
    static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// What is read of these bytes, and what is left of them.
async fn read_of(bytes: &[u8], pause: usize) -> (io::Result<Option<SocketAddr>>, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback is there");
    let mut client = TcpStream::connect(listener.local_addr().expect("it is bound")).await.expect("it listens");
    let (mut stream, _) = listener.accept().await.expect("somebody connects");
    // Nothing lingers: there will be many.
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("a socket");
    let (first, second) = bytes.split_at(pause.min(bytes.len()));
    client.write_all(first).await.expect("there is room");
    let mut reading = Box::pin(read(&mut stream));
    // Lets the runtime look at the sockets.
    tokio::task::yield_now().await;
    let early = reading.as_mut().now_or_never();
    client.write_all(second).await.expect("there is room");
    client.shutdown().await.expect("it is open");
    let read = match early {
        Some(read) => read,
        None => reading.as_mut().await,
    };
    drop(reading);
    let mut rest = Vec::new();
    drop(stream.read_to_end(&mut rest).await);
    (read, rest)
}

/// The protocol's document, read plainly: whom the header names and how long it is. `None`: it is none.
fn named(bytes: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    if bytes.first() == Some(&b'P') { named_by_line(bytes) } else { named_by_v2(bytes) }
}

fn named_by_line(bytes: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    let end = bytes.iter().take(V1_BYTES_MAX).position(|&byte| byte == b'\n')?;
    let line = bytes[..end].strip_suffix(b"\r")?;
    if line.starts_with(b"PROXY UNKNOWN ") {
        return Some((None, end + 1));
    }
    let line = std::str::from_utf8(line).ok()?;
    let words: Vec<&str> = line.split(' ').collect();
    let source = match words[..] {
        ["PROXY", "UNKNOWN"] => None,
        ["PROXY", "TCP4", source, destination, from, to] => {
            destination.parse::<Ipv4Addr>().ok()?;
            port(to)?;
            Some((source.parse::<Ipv4Addr>().ok()?, port(from)?).into())
        }
        ["PROXY", "TCP6", source, destination, from, to] => {
            destination.parse::<Ipv6Addr>().ok()?;
            port(to)?;
            Some((source.parse::<Ipv6Addr>().ok()?, port(from)?).into())
        }
        _ => return None,
    };
    Some((source, end + 1))
}

/// Without zeros in front.
fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    is_plain.then(|| text.parse().ok())?
}

fn named_by_v2(bytes: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    let head = bytes.get(..V2_HEAD_BYTES)?;
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let addresses = bytes.get(V2_HEAD_BYTES..V2_HEAD_BYTES + length)?;
    if !head.starts_with(V2_SIGNATURE) || length > PROXY_HEADER_BYTES_MAX || !matches!(head[12], 0x20 | 0x21) {
        return None;
    }
    let (family, protocol) = (head[13] >> 4, head[13] & 0xf);
    // Where a family has addresses, all of them are there.
    let size = *[0, 12, 36, 216].get(usize::from(family))?;
    if protocol > 2 || length < size {
        return None;
    }
    let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
    let source: SocketAddr = match (head[12], family, protocol) {
        (0x20, ..) | (_, 0 | 3, _) => return Some((None, V2_HEAD_BYTES + length)),
        (_, _, 2) => return None,
        (_, 1, _) => (<[u8; 4]>::try_from(&addresses[..4]).ok()?, port(8)).into(),
        _ => (<[u8; 16]>::try_from(&addresses[..16]).ok()?, port(32)).into(),
    };
    Some((Some(source), V2_HEAD_BYTES + length))
}
