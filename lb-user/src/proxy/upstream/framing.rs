//! Where the body of a worker's answer ends (RFC 9112 section 6.3), and what of it has come.

use bytes::{Buf as _, Bytes};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode, Version};

use super::Failed;
use super::head;
use crate::proxy::limits::{CHUNK_LINE_BYTES_MAX, HEAD_BYTES_MAX, HEADERS_MAX};

/// How the rest of a body is told from what follows it.
#[derive(Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no more.
    Done,
    /// So many bytes are missing.
    Length(u64),
    Chunked(Chunk),
    /// All that comes.
    UntilClose,
}

/// Where in a chunked body the next byte belongs.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
}

/// What has come of a body.
#[derive(Debug, PartialEq)]
pub enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// Nothing that is whole.
    Missing,
}

impl Framing {
    /// What the answer's head says. Removes the lengths that would be a second framing, and those said twice.
    pub fn of(asked: &Method, status: StatusCode, version: Version, headers: &mut HeaderMap) -> Result<Self, Failed> {
        let length = content_length(headers)?;
        let is_coded = headers.contains_key(TRANSFER_ENCODING);
        if is_coded && version == Version::HTTP_10 {
            return Err(Failed::Malformed("a transfer coding in HTTP/1.0"));
        }
        if *asked == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(Self::Done);
        }
        if is_coded {
            let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
            let is_chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
            // Clients are not told of codings, so that any other would reach them as garbage.
            return match (codings.next(), codings.next()) {
                (Some(only), None) if is_chunked(only) => Ok(Self::Chunked(Chunk::Size)),
                _ => Err(Failed::Malformed("a transfer coding that is not chunked")),
            };
        }
        Ok(match length {
            Some(0) => Self::Done,
            Some(length) => Self::Length(length),
            None => Self::UntilClose,
        })
    }

    /// Takes the next piece out of what has come.
    pub fn take(&mut self, come: &mut Bytes) -> Result<Piece, Failed> {
        match self {
            Self::Done => Ok(Piece::End),
            Self::UntilClose if come.is_empty() => Ok(Piece::Missing),
            Self::UntilClose => Ok(Piece::Data(std::mem::take(come))),
            Self::Length(left) => {
                let Some(data) = up_to(*left, come) else { return Ok(Piece::Missing) };
                *left -= data.len() as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Piece::Data(data))
            }
            Self::Chunked(chunk) => {
                let piece = chunk.take(come)?;
                if matches!(piece, Piece::Trailers(_) | Piece::End) {
                    *self = Self::Done;
                }
                Ok(piece)
            }
        }
    }
}

impl Chunk {
    fn take(&mut self, come: &mut Bytes) -> Result<Piece, Failed> {
        loop {
            match self {
                Self::Size => {
                    let Some(first) = come.first() else { return Ok(Piece::Missing) };
                    let read = httparse::parse_chunk_size(come).ok().filter(|_| first.is_ascii_hexdigit());
                    match read.ok_or(Failed::Malformed("a chunk's size that is none"))? {
                        httparse::Status::Complete((length, size)) => {
                            come.advance(length);
                            *self = if size == 0 { Self::Trailers } else { Self::Data(size) };
                        }
                        httparse::Status::Partial if come.len() > CHUNK_LINE_BYTES_MAX => {
                            return Err(Failed::Malformed("a chunk's size without an end"));
                        }
                        httparse::Status::Partial => return Ok(Piece::Missing),
                    }
                }
                Self::Data(left) => {
                    let Some(data) = up_to(*left, come) else { return Ok(Piece::Missing) };
                    *left -= data.len() as u64;
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                    return Ok(Piece::Data(data));
                }
                Self::DataEnd => match **come {
                    [] | [b'\r'] => return Ok(Piece::Missing),
                    [b'\r', b'\n', ..] => {
                        come.advance(2);
                        *self = Self::Size;
                    }
                    _ => return Err(Failed::Malformed("a chunk longer than its size")),
                },
                Self::Trailers => return trailers(come),
            }
        }
    }
}

fn trailers(come: &mut Bytes) -> Result<Piece, Failed> {
    if come.starts_with(b"\r\n") {
        come.advance(2);
        return Ok(Piece::End);
    }
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let (length, trailers) = match httparse::parse_headers(come, &mut fields) {
        Ok(httparse::Status::Complete((length, fields))) => (length, head::headers(come, fields)?),
        Ok(httparse::Status::Partial) if come.len() > HEAD_BYTES_MAX => {
            return Err(Failed::Malformed("trailers that are too large"));
        }
        Ok(httparse::Status::Partial) => return Ok(Piece::Missing),
        Err(_) => return Err(Failed::Malformed("trailers that are none")),
    };
    come.advance(length);
    Ok(Piece::Trailers(trailers))
}

/// At most so many bytes; `None` when none have come.
fn up_to(most: u64, come: &mut Bytes) -> Option<Bytes> {
    let length = come.len().min(usize::try_from(most).unwrap_or(usize::MAX));
    (length > 0).then(|| come.split_to(length))
}

/// One length, which may have been said more than once.
fn content_length(headers: &mut HeaderMap) -> Result<Option<u64>, Failed> {
    let number = |text: &[u8]| {
        let text = std::str::from_utf8(text.trim_ascii()).ok()?;
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
    };
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = values.next() else { return Ok(None) };
    let is_alone = values.next().is_none();
    if is_alone && let Some(length) = number(first.as_bytes()) {
        return Ok(Some(length));
    }
    let all = headers.get_all(CONTENT_LENGTH).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let mut lengths = all.map(number);
    let first = lengths.next().flatten();
    if first.is_none() || lengths.any(|length| length != first) {
        return Err(Failed::Malformed("lengths that are none, or not the same"));
    }
    headers.insert(CONTENT_LENGTH, first.unwrap_or_default().into());
    Ok(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framing(asked: &Method, status: u16, version: Version, lines: &[(&'static str, &str)]) -> Result<Framing, ()> {
        let mut headers = HeaderMap::new();
        for &(name, value) in lines {
            headers.append(name, value.parse().unwrap());
        }
        let framing = Framing::of(asked, StatusCode::from_u16(status).unwrap(), version, &mut headers).map_err(drop)?;
        assert!(headers.get_all(CONTENT_LENGTH).iter().count() <= 1);
        Ok(framing)
    }

    #[test]
    fn a_head_says_how_its_body_ends() {
        let get = |lines: &[_]| framing(&Method::GET, 200, Version::HTTP_11, lines);
        let (length, chunked) = (("content-length", "4"), ("transfer-encoding", "Chunked"));
        assert_eq!(get(&[]), Ok(Framing::UntilClose));
        assert_eq!(get(&[length]), Ok(Framing::Length(4)));
        assert_eq!(get(&[length, length]), Ok(Framing::Length(4)));
        assert_eq!(get(&[("content-length", "4, 4")]), Ok(Framing::Length(4)));
        assert_eq!(get(&[("content-length", "0")]), Ok(Framing::Done));
        assert_eq!(get(&[chunked]), Ok(Framing::Chunked(Chunk::Size)));
        assert_eq!(get(&[chunked, length]), Ok(Framing::Chunked(Chunk::Size)), "RFC 9112 section 6.3");
        for bad in [
            &[("content-length", "4, 5")][..],
            &[length, ("content-length", "5")],
            &[("content-length", "+4")],
            &[("content-length", "")],
            &[("content-length", "99999999999999999999")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "gzip")],
            &[chunked, chunked],
        ] {
            assert_eq!(get(bad), Err(()), "{bad:?}");
        }
        assert_eq!(framing(&Method::GET, 200, Version::HTTP_10, &[chunked]), Err(()));
        for (asked, status) in [(Method::HEAD, 200), (Method::GET, 204), (Method::GET, 304)] {
            for lines in [&[][..], &[length], &[chunked]] {
                assert_eq!(framing(&asked, status, Version::HTTP_11, lines), Ok(Framing::Done), "{asked} {status}");
            }
        }
    }

    /// The data, the trailers' number, and what is left, if `wire` comes in pieces of `size`.
    fn read(mut framing: Framing, wire: &[u8], size: usize) -> Result<(Vec<u8>, Option<usize>, Bytes), Failed> {
        let (mut come, mut data, mut trailers) = (Bytes::new(), Vec::new(), None);
        for piece in wire.chunks(size) {
            come = [&come, piece].concat().into();
            loop {
                match framing.take(&mut come)? {
                    Piece::Data(more) => data.extend_from_slice(&more),
                    Piece::Trailers(some) => trailers = Some(some.len()),
                    Piece::Missing | Piece::End => break,
                }
            }
        }
        assert_eq!(framing, Framing::Done);
        Ok((data, trailers, come))
    }

    #[test]
    fn chunks_come_in_pieces_of_any_size() {
        let wire = b"3\r\nabc\r\n00a;x=y\r\n0123456789\r\n0\r\nX-Sum: 7\r\nY: 1\r\n\r\nnext";
        for size in 1..=wire.len() {
            let (data, trailers, left) = read(Framing::Chunked(Chunk::Size), wire, size).unwrap();
            assert_eq!((&data[..], trailers), (&b"abc0123456789"[..], Some(2)), "by {size}");
            assert_eq!(&left[..], b"next");
        }
    }

    #[test]
    fn chunks_that_are_none_are_refused() {
        let long = format!("1;{}", "x".repeat(CHUNK_LINE_BYTES_MAX));
        let many = format!("0\r\n{}\r\n", "X: 1\r\n".repeat(HEADERS_MAX + 1));
        let large = format!("0\r\nX: {}", "x".repeat(HEAD_BYTES_MAX));
        for wire in [
            "\r\n\r\n",
            "x\r\n",
            "-1\r\n",
            ";\r\n",
            "3\r\nabcd\r\n",
            "11111111111111111\r\n",
            "0\r\nnonsense\r\n\r\n",
            &long,
            &many,
            &large,
        ] {
            for size in [1, 7, wire.len()] {
                assert!(read(Framing::Chunked(Chunk::Size), wire.as_bytes(), size).is_err(), "{wire:?} by {size}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_put_into_chunks_is_taken_out(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..10),
            size in 1_usize..80,
        ) {
            let mut wire = Vec::new();
            for part in &parts {
                wire.extend_from_slice(format!("{:X}\r\n", part.len()).as_bytes());
                wire.extend_from_slice(part);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let (data, trailers, left) = read(Framing::Chunked(Chunk::Size), &wire, size).unwrap();
            prop_assert_eq!((data, trailers, left.len()), (parts.concat(), None, 0));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(wire in prop::collection::vec(any::<u8>(), 0..200), size in 1_usize..50) {
            let (mut framing, mut come) = (Framing::Chunked(Chunk::Size), Bytes::new());
            'all: for piece in wire.chunks(size) {
                come = [&come, piece].concat().into();
                loop {
                    match framing.take(&mut come) {
                        Ok(Piece::Missing | Piece::End) => break,
                        Ok(_) => {}
                        Err(_) => break 'all,
                    }
                }
            }
        }
    }
}
