//! HTTP/2 frame by frame (RFC 9113), so that a client can send what no library would.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::instance::DEADLINE;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Also ACK.
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
/// Of a request without a body.
pub const WHOLE: u8 = END_STREAM | END_HEADERS;

/// Bytes that a server takes on a stream, and on all of a connection, until it says otherwise.
pub const INITIAL_WINDOW: u32 = 65_535;
/// The longest frame that every server takes.
const PIECE: usize = 16_384;

/// What a server does with a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// The connection is ended with this error code.
    GoAway(u32),
    /// The stream is ended with this error code.
    Reset(u32),
    /// The stream's answer begins with this status.
    Answered(u16),
    /// The connection has ended without a word.
    Closed,
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = &(payload.len() as u32).to_be_bytes()[1..];
    [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Header lines as literals that nobody remembers (RFC 7541 section 6.2.2), each name and value below 127 bytes.
pub fn block(lines: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    lines.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A client that has begun as it should.
pub struct Client(TcpStream);

impl Client {
    pub fn connect(target: SocketAddr) -> Self {
        let mut client = Self::silent(target);
        client.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
        client
    }

    /// One that has not said anything.
    pub fn silent(target: SocketAddr) -> Self {
        let stream = TcpStream::connect(target).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("set");
        Self(stream)
    }

    /// Waits no longer than this for what comes next; a server that says nothing counts as [`Reaction::Closed`].
    pub fn patient_for(self, time: Duration) -> Self {
        self.0.set_read_timeout(Some(time)).expect("set");
        self
    }

    /// What is not taken any more shows in the reaction.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// What becomes of the stream, or of the connection before. Acknowledged settings and pings are passed over.
    pub fn reaction(&mut self, stream: u32) -> Reaction {
        loop {
            let Some((kind, about, payload)) = self.next() else { return Reaction::Closed };
            let code =
                |at: usize| payload.get(at..at + 4).map(|code| u32::from_be_bytes(code.try_into().expect("four")));
            match kind {
                GOAWAY => return Reaction::GoAway(code(4).expect("a GOAWAY has a code")),
                RST_STREAM if about == stream => return Reaction::Reset(code(0).expect("a reset has a code")),
                HEADERS if about == stream => return Reaction::Answered(status(&payload)),
                _ => {}
            }
        }
    }

    /// Sends so much on the stream, as far as the server's windows let it (RFC 9113 section 6.9); how much, once the time is over in
    /// which it opened none of them.
    pub fn push(&mut self, stream: u32, most: u64) -> u64 {
        let initial = i64::from(INITIAL_WINDOW);
        let (mut window, mut of_connection, mut sent) = (initial, initial, 0);
        while sent < most {
            while window.min(of_connection) >= PIECE as i64 {
                self.send(&frame(DATA, 0, stream, &[b'x'; PIECE]));
                window -= PIECE as i64;
                of_connection -= PIECE as i64;
                sent += PIECE as u64;
            }
            let Some((kind, about, payload)) = self.next() else { break };
            let number = |at: usize| i64::from(u32::from_be_bytes(payload[at..at + 4].try_into().expect("four")));
            match kind {
                WINDOW_UPDATE if about == 0 => of_connection += number(0),
                WINDOW_UPDATE if about == stream => window += number(0),
                SETTINGS => {
                    let new = payload.chunks_exact(6).rposition(|setting| setting[..2] == [0, 4]);
                    window += new.map_or(0, |at| number(at * 6 + 2) - initial);
                }
                _ => {}
            }
        }
        sent
    }

    /// Waits for the answer to a ping with these bytes.
    pub fn is_alive(&mut self, mark: [u8; 8]) -> bool {
        self.send(&frame(PING, 0, 0, &mark));
        std::iter::from_fn(|| self.next()).any(|(kind, _, payload)| kind == PING && payload == mark)
    }

    fn next(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }
}

/// The first line of an answer's block: a known status by its number (RFC 7541 appendix A), another one as text.
fn status(block: &[u8]) -> u16 {
    // A table's new size comes before it.
    let start = block.iter().take_while(|&&byte| byte & 0xe0 == 0x20).count();
    const KNOWN: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match block[start..] {
        [indexed @ 0x88..=0x8e, ..] => KNOWN[usize::from(indexed - 0x88)],
        // Name 8 with a value: in three digits, or by Huffman's code in two bytes or three.
        [0x48 | 0x08, 3, a, b, c, ..] => {
            [a, b, c].iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0'))
        }
        [0x48 | 0x08, 0x82, a, b, ..] => digits([a, b, 0, 0]),
        [0x48 | 0x08, 0x83, a, b, c, ..] => digits([a, b, c, 0]),
        _ => panic!("no status in {block:02x?}"),
    }
}

/// Three digits in Huffman's code (RFC 7541 appendix B): 0, 1 and 2 take five bits, the others six.
fn digits(bytes: [u8; 4]) -> u16 {
    let mut bits = u32::from_be_bytes(bytes);
    let mut number = 0;
    for _ in 0..3 {
        let (length, digit) = match bits >> 27 {
            short @ 0..3 => (5, short),
            _ => (6, (bits >> 26) - 0x19 + 3),
        };
        bits <<= length;
        number = number * 10 + digit as u16;
    }
    number
}

#[cfg(test)]
mod tests {
    use super::{block, digits, frame, status};

    #[test]
    fn frames_and_statuses_are_as_the_documents_have_them() {
        assert_eq!(frame(6, 1, 3, b"ab"), [0, 0, 2, 6, 1, 0, 0, 0, 3, b'a', b'b']);
        assert_eq!(block(&[("a", "bc")]), [0, 1, b'a', 2, b'b', b'c']);
        // RFC 7541, sections C.6.1 and C.6.2.
        assert_eq!((digits([0x64, 0x02, 0, 0]), digits([0x64, 0x0e, 0xff, 0])), (302, 307));
        assert_eq!((status(&[0x88]), status(&[0x48, 3, b'4', b'2', b'1'])), (200, 421));
    }
}
