//! The head of a request as a worker reads it, and that of its answer as everybody else here knows it.

use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes};
use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Response, StatusCode, Version, request};
use hyper::ext::ReasonPhrase;

use super::Failed;
use super::framing::Framing;
use crate::proxy::check::tokens;
use crate::proxy::limits::{HEAD_BYTES_MAX, HEADERS_MAX};

/// Room for a head as browsers and proxies make them, in bytes.
const USUAL_BYTES: usize = 1024;

/// The request's head in HTTP/1.1. `is_chunked`: its body follows in chunks.
pub fn written(parts: &request::Parts, is_chunked: bool) -> Vec<u8> {
    let mut head = Vec::with_capacity(USUAL_BYTES);
    head.extend_from_slice(parts.method.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(parts.uri.path().as_bytes());
    if let Some(query) = parts.uri.query() {
        head.push(b'?');
        head.extend_from_slice(query.as_bytes());
    }
    head.extend_from_slice(b" HTTP/1.1\r\n");
    let mut line = |name: &HeaderName, value: &[u8]| {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    };
    for (name, value) in parts.headers.iter().filter(|(name, _)| *name != TRANSFER_ENCODING) {
        line(name, value.as_bytes());
    }
    if is_chunked {
        line(&TRANSFER_ENCODING, b"chunked");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// A worker's answer as far as its head tells.
pub struct Head {
    pub response: Response<()>,
    pub framing: Framing,
    /// The connection is good for another request behind it.
    pub keeps_alive: bool,
}

/// Takes the head of an answer to such a request out of what has come, if all of it has. Interim ones are passed over
/// (RFC 9110 section 15.2), but for the 101.
pub fn take(asked: &Method, come: &mut Bytes) -> Result<Option<Head>, Failed> {
    loop {
        let Some(mut response) = take_any(come)? else { return Ok(None) };
        let status = response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Some(Head { response, framing: Framing::Done, keeps_alive: false }));
        }
        if !status.is_informational() {
            let version = response.version();
            let keeps_alive = keeps_alive(version, response.headers());
            let framing = Framing::of(asked, status, version, response.headers_mut())?;
            return Ok(Some(Head { response, framing, keeps_alive }));
        }
    }
}

fn keeps_alive(version: Version, headers: &HeaderMap) -> bool {
    let says = |word: &[u8]| tokens(&headers.get_all(CONNECTION)).any(|token| token.eq_ignore_ascii_case(word));
    if version == Version::HTTP_10 { says(b"keep-alive") } else { !says(b"close") }
}

fn take_any(come: &mut Bytes) -> Result<Option<Response<()>>, Failed> {
    let mut fields = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut read = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut read, come, &mut fields);
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if come.len() <= HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(Failed::Malformed("a head that is too large")),
        Err(httparse::Error::TooManyHeaders) => return Err(Failed::Malformed("a head of too many lines")),
        Err(_) => return Err(Failed::Malformed("a head that is none")),
    };
    if length > HEAD_BYTES_MAX {
        return Err(Failed::Malformed("a head that is too large"));
    }
    let mut response = Response::new(());
    let status = read.code.and_then(|code| StatusCode::from_u16(code).ok());
    *response.status_mut() = status.ok_or(Failed::Malformed("a status that is none"))?;
    *response.version_mut() = if read.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let reason = read.reason.unwrap_or_default();
    if response.status().canonical_reason() != Some(reason)
        && let Ok(reason) = ReasonPhrase::try_from(reason.as_bytes())
    {
        response.extensions_mut().insert(reason);
    }
    *response.headers_mut() = headers(come, read.headers)?;
    come.advance(length);
    Ok(Some(response))
}

/// Fields that were read from `come`, as headers that share its memory.
pub fn headers(come: &Bytes, fields: &[httparse::Header<'_>]) -> Result<HeaderMap, Failed> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        // Nothing to refer to in an empty value.
        let value = if field.value.is_empty() { Bytes::new() } else { come.slice_ref(field.value) };
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(value)) else {
            return Err(Failed::Malformed("a header that is none"));
        };
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn taken(text: &str) -> Result<Option<(Head, Bytes)>, Failed> {
        let mut come = Bytes::copy_from_slice(text.as_bytes());
        Ok(take(&Method::GET, &mut come)?.map(|head| (head, come)))
    }

    #[test]
    fn a_request_is_written_as_it_is_but_for_its_framing() {
        let request = Request::get("/a%20b?q=/?").header("Host", "a").header("cookie", "x=1").header("cookie", "y=2");
        let request = request.header(TRANSFER_ENCODING, "chunked").body(()).unwrap().into_parts().0;
        let rest = "host: a\r\ncookie: x=1\r\ncookie: y=2\r\n";
        for (is_chunked, framing) in [(false, ""), (true, "transfer-encoding: chunked\r\n")] {
            let head = String::from_utf8(written(&request, is_chunked)).unwrap();
            assert_eq!(head, format!("GET /a%20b?q=/? HTTP/1.1\r\n{rest}{framing}\r\n"));
        }
    }

    #[test]
    fn an_answer_is_read_when_all_of_its_head_has_come() {
        let text = "HTTP/1.1 200 Fine\r\nX: 1\r\nX: 2\r\nEmpty:\r\nContent-Length: 4\r\n\r\nbody";
        for end in 0..text.len() - "body".len() {
            assert!(taken(&text[..end]).unwrap().is_none(), "{:?}", &text[..end]);
        }
        let (head, left) = taken(text).unwrap().unwrap();
        assert_eq!((head.framing, head.keeps_alive, &left[..]), (Framing::Length(4), true, &b"body"[..]));
        let headers = head.response.headers();
        assert_eq!((headers.get_all("x").iter().count(), headers["empty"].len()), (2, 0));
        assert_eq!(head.response.extensions().get::<ReasonPhrase>().unwrap().as_bytes(), b"Fine");
    }

    #[test]
    fn interim_answers_are_passed_over_and_a_switch_is_none() {
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
        assert!(taken(interim).unwrap().is_none());
        let (head, _) = taken(&format!("{interim}HTTP/1.1 204 No Content\r\n\r\n")).unwrap().unwrap();
        assert_eq!((head.response.status(), head.response.headers().len()), (StatusCode::NO_CONTENT, 0));
        let (head, left) = taken("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nhello").unwrap().unwrap();
        assert_eq!((head.response.status().as_u16(), head.keeps_alive, &left[..]), (101, false, &b"hello"[..]));
    }

    #[test]
    fn who_closes_behind_its_answer_is_known() {
        for (line, header, expected) in [
            ("HTTP/1.1", "", true),
            ("HTTP/1.1", "Connection: x, Close\r\n", false),
            ("HTTP/1.0", "", false),
            ("HTTP/1.0", "Connection: Keep-Alive\r\n", true),
        ] {
            let (head, _) = taken(&format!("{line} 204 No Content\r\n{header}\r\n")).unwrap().unwrap();
            assert_eq!(head.keeps_alive, expected, "{line} {header}");
        }
    }
}
