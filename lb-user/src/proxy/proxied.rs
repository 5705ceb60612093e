//! The PROXY protocol, versions 1 and 2: whom a proxy in front speaks for, told before anything else on the connection
//! (haproxy's doc/proxy-protocol.txt).

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use std::io;
use std::net::SocketAddr;

use ppp::{v1, v2};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::limits::PROXY_HEADER_BYTES_MAX;

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version, protocol and length.
const V2_HEAD_BYTES: usize = 16;
/// The longest line there may be, with its end.
const V1_BYTES_MAX: usize = 107;

/// Reads the header and not one byte more. `None`: the proxy speaks for itself (a health check), or for somebody without an
/// address.
///
/// # Errors
/// When there is none, or it is malformed or too long.
pub async fn read(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut first = [0];
    stream.read_exact(&mut first).await?;
    let mut header = first.to_vec();
    match first[0] {
        b'\r' => {
            header.resize(V2_HEAD_BYTES, 0);
            stream.read_exact(&mut header[1..]).await?;
            let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
            if !header.starts_with(V2_SIGNATURE) || length > PROXY_HEADER_BYTES_MAX {
                return Err(malformed("no PROXY header of version 2, or one that is too long"));
            }
            header.resize(V2_HEAD_BYTES + length, 0);
            stream.read_exact(&mut header[V2_HEAD_BYTES..]).await?;
        }
        b'P' => {
            while !header.ends_with(b"\n") {
                if header.len() == V1_BYTES_MAX {
                    return Err(malformed("a PROXY line that is too long"));
                }
                // What is there already up to the line's end, without taking what comes after.
                let mut ahead = [0; V1_BYTES_MAX];
                let ahead = &mut ahead[..V1_BYTES_MAX - header.len()];
                let there = stream.peek(ahead).await?;
                let line = ahead[..there].iter().position(|&byte| byte == b'\n').map_or(there, |end| end + 1);
                if line == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                stream.read_exact(&mut ahead[..line]).await?;
                header.extend_from_slice(&ahead[..line]);
            }
            // Others read on to a CRLF, above all behind UNKNOWN, and would find the end of the header elsewhere.
            if !header.ends_with(b"\r\n") {
                return Err(malformed("a PROXY line that LF alone ends"));
            }
        }
        _ => return Err(malformed("no PROXY header")),
    }
    source(&header)
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Whom a whole header names.
fn source(header: &[u8]) -> io::Result<Option<SocketAddr>> {
    if header.starts_with(V2_SIGNATURE) {
        let header = v2::Header::try_from(header).map_err(|error| malformed(&error.to_string()))?;
        return match (header.command, header.protocol, header.addresses) {
            (v2::Command::Local, ..) | (_, _, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => Ok(None),
            (_, v2::Protocol::Datagram, _) => Err(malformed("a PROXY header for datagrams")),
            (_, _, v2::Addresses::IPv4(ip)) => Ok(Some((ip.source_address, ip.source_port).into())),
            (_, _, v2::Addresses::IPv6(ip)) => Ok(Some((ip.source_address, ip.source_port).into())),
        };
    }
    // What else the line says is to be passed over; ppp reads it all the same.
    if header.starts_with(b"PROXY UNKNOWN ") {
        return Ok(None);
    }
    // ppp takes a sign before a port.
    if header.contains(&b'+') {
        return Err(malformed("a PROXY line with a sign in it"));
    }
    let header = v1::Header::try_from(header).map_err(|error| malformed(&error.to_string()))?;
    match header.addresses {
        v1::Addresses::Unknown => Ok(None),
        v1::Addresses::Tcp4(ip) => Ok(Some((ip.source_address, ip.source_port).into())),
        v1::Addresses::Tcp6(ip) => Ok(Some((ip.source_address, ip.source_port).into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    fn v2(command: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u16).to_be_bytes();
        [V2_SIGNATURE.as_slice(), &[0x20 | command, protocol], &length, payload].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0, 80];

    /// What is read of these bytes, and what is left of them.
    async fn read_of(bytes: &[u8]) -> (io::Result<Option<SocketAddr>>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let read = read(&mut stream).await;
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest).await);
        (read, rest)
    }

    #[tokio::test]
    async fn both_versions_are_read_and_nothing_after_them() {
        let tlvs = [&V4[..], &[0x03, 0, 4, 1, 2, 3, 4], &[0x02, 0, 2, b'h', b'i']].concat();
        let v6 = [&[0x20; 16][..], &[0x21; 16], &[0, 1, 0, 2]].concat();
        for (header, source) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\n".to_vec(), Some("192.0.2.7:4660")),
            (b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n".to_vec(), Some("[2001:db8::7]:1")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN whatever it says\r\n".to_vec(), None),
            (b"PROXY UNKNOWN what TCP6 ::1 ::1 1 2 and so on \xff\r\n".to_vec(), None),
            (v2(1, 0x11, &V4), Some("192.0.2.7:4660")),
            (v2(1, 0x11, &tlvs), Some("192.0.2.7:4660")),
            (v2(1, 0x21, &v6), Some("[2020:2020:2020:2020:2020:2020:2020:2020]:1")),
            (v2(0, 0x00, &[]), None),
            (v2(0, 0x11, &V4), None),
            (v2(1, 0x31, &[0; 216]), None),
        ] {
            let (read, rest) = read_of(&[&header[..], b"PROXY GET /"].concat()).await;
            let shown = String::from_utf8_lossy(&header).into_owned();
            assert_eq!(read.unwrap(), source.map(|source| source.parse().unwrap()), "{shown}");
            assert_eq!(rest, b"PROXY GET /", "{shown}");
        }
    }

    #[tokio::test]
    async fn what_is_cut_off_too_long_or_something_else_is_refused() {
        let whole = v2(1, 0x11, &V4);
        let mut cases: Vec<Vec<u8>> = (0..whole.len()).map(|end| whole[..end].to_vec()).collect();
        let line = b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\n";
        cases.extend((0..line.len()).map(|end| line[..end].to_vec()));
        for text in [
            "GET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\n\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\n",
            "PROXY UNKNOWN\n",
            "PROXY UNKNOWN x\n y\r\n",
            "PROXY TCP4 192.0.2.777 10.0.0.1 4660 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 4660 +80\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 66666 80\r\n",
            "PROXY TCP9 a b c d\r\n",
            "\r\n\r\n\0\r\nQUIT!xxxxxxxxx",
        ] {
            cases.push(text.as_bytes().to_vec());
        }
        cases.push([b"PROXY UNKNOWN ", &[b'x'; 200][..], b"\r\n"].concat());
        cases.push(v2(1, 0x11, &[&V4[..], &[0; PROXY_HEADER_BYTES_MAX]].concat()));
        cases.push(v2(1, 0x12, &V4));
        cases.push(v2(1, 0x11, &V4[..8]));
        cases.push([V2_SIGNATURE.as_slice(), &[0x31, 0x11, 0, 12], &V4].concat());
        for case in cases {
            let (read, _) = read_of(&case).await;
            assert!(read.is_err(), "{:?}: {read:?}", String::from_utf8_lossy(&case));
        }
    }

    proptest! {
        #[test]
        fn no_header_is_too_strange(
            start in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", V2_SIGNATURE]),
            bytes: Vec<u8>,
            end in prop::sample::select(vec![&b""[..], b"\r\n"]),
        ) {
            drop(source(&[start, &bytes, end].concat()));
        }
    }
}
