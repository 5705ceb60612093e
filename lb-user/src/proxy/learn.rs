//! What a worker says at the beginning of a WebSocket: the id of the Shiny session that lives there. Bytes in, the id out.
//!
//! Shiny, in R and in Python, says it in one of its first messages, `{"config": {"sessionId": "…"}}`, and its pages then
//! ask for `session/<id>/…`: uploads, downloads, plots and data that only that process has.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use std::io::Cursor;

use flate2::{Decompress, FlushDecompress};
use serde::Deserialize;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use super::limits::{LEARN_BYTES_MAX, LEARN_MESSAGES_MAX};

/// Characters of a session's id: enough not to be guessed, few enough to be kept.
const ID_CHARS: std::ops::RangeInclusive<usize> = 16..=128;
/// What ends a compressed message, and is not sent (RFC 7692 section 7.2.1).
const FLUSHED: [u8; 4] = [0, 0, 0xff, 0xff];

/// Listens to one WebSocket until it has heard enough. Holds no more than [`LEARN_BYTES_MAX`] bytes.
#[derive(Default)]
pub struct Learner {
    /// A frame that has not come whole.
    unread: Vec<u8>,
    /// The messages that were compressed, as one stream: later ones may refer to earlier ones.
    compressed: Vec<u8>,
    /// The message that is coming: whether it is compressed, and its payload so far unless it is.
    message: Option<(bool, Vec<u8>)>,
    bytes: usize,
    messages: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing yet.
    Little,
    Session(Box<str>),
    /// This is no Shiny, or none that can be understood.
    Enough,
}

/// A frame that cannot be followed: what comes after it cannot be either.
struct Lost;

impl Learner {
    pub fn hear(&mut self, data: &[u8]) -> Heard {
        self.bytes += data.len();
        if self.bytes > LEARN_BYTES_MAX {
            return Heard::Enough;
        }
        self.unread.extend_from_slice(data);
        loop {
            match self.frame() {
                Ok(None) => return Heard::Little,
                Ok(Some(Some(text))) => {
                    if let Some(id) = session_in(&text) {
                        return Heard::Session(id);
                    }
                    self.messages += 1;
                    if self.messages == LEARN_MESSAGES_MAX {
                        return Heard::Enough;
                    }
                }
                Ok(Some(None)) => {}
                Err(Lost) => return Heard::Enough,
            }
        }
    }

    /// Takes the next frame, and gives the text of the message that it completes. `None`: there is no whole frame.
    fn frame(&mut self) -> Result<Option<Option<Vec<u8>>>, Lost> {
        let mut cursor = Cursor::new(&self.unread);
        let Some((header, length)) = FrameHeader::parse(&mut cursor).map_err(|_| Lost)? else { return Ok(None) };
        // A worker does not mask, and nothing longer is waited for.
        if header.mask.is_some() || length > LEARN_BYTES_MAX as u64 {
            return Err(Lost);
        }
        let start = cursor.position() as usize;
        let end = start + length as usize;
        if self.unread.len() < end {
            return Ok(None);
        }
        let payload: Vec<u8> = self.unread.drain(..end).skip(start).collect();
        let data = match header.opcode {
            OpCode::Data(data) => data,
            OpCode::Control(_) => return Ok(Some(None)),
        };
        if data != Data::Continue {
            self.message = Some((header.rsv1, Vec::new()));
        }
        let (is_compressed, text) = self.message.as_mut().ok_or(Lost)?;
        (if *is_compressed { &mut self.compressed } else { text }).extend_from_slice(&payload);
        if !header.is_final {
            return Ok(Some(None));
        }
        match self.message.take() {
            Some((false, text)) => Ok(Some(Some(text))),
            _ => {
                self.compressed.extend(FLUSHED);
                inflate(&self.compressed).map(|text| Some(Some(text)))
            }
        }
    }
}

/// What the last of these messages says, and those before it where they are short. At most a few times
/// [`LEARN_BYTES_MAX`].
fn inflate(compressed: &[u8]) -> Result<Vec<u8>, Lost> {
    let mut text = Vec::with_capacity(4 * LEARN_BYTES_MAX);
    Decompress::new(false).decompress_vec(compressed, &mut text, FlushDecompress::Sync).map_err(|_| Lost)?;
    Ok(text)
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    config: Option<Config<'a>>,
}

#[derive(Deserialize)]
struct Config<'a> {
    #[serde(rename = "sessionId", borrow)]
    session_id: std::borrow::Cow<'a, str>,
}

/// The id that a message names, or one of several messages in a row.
fn session_in(text: &[u8]) -> Option<Box<str>> {
    let mut messages = serde_json::Deserializer::from_slice(text).into_iter::<Message<'_>>();
    let config = messages.find_map(|message| message.ok()?.config)?;
    is_id(&config.session_id).then(|| config.session_id.into())
}

/// The session that a path names: the segment after `session`.
pub fn session_of(path: &str) -> Option<&str> {
    let mut segments = path.split('/').skip_while(|segment| *segment != "session").skip(1);
    segments.next().filter(|id| is_id(id))
}

fn is_id(text: &str) -> bool {
    ID_CHARS.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;

    const ID: &str = "e5c1a8f0a3b24c5d8e9f0123456789ab";

    fn config() -> String {
        format!("{{\"config\":{{\"workerId\":\"\",\"sessionId\":\"{ID}\",\"user\":null}}}}")
    }

    fn bytes(frame: Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.format(&mut bytes).unwrap();
        bytes
    }

    fn text(payload: &[u8]) -> Vec<u8> {
        bytes(Frame::message(payload.to_vec(), OpCode::Data(Data::Text), true))
    }

    /// Messages as a worker with permessage-deflate sends them, later ones referring to earlier ones.
    fn compressed(messages: &[&str]) -> Vec<u8> {
        let mut compress = Compress::new(Compression::default(), false);
        let mut all = Vec::new();
        for message in messages {
            let mut payload = Vec::with_capacity(4096);
            compress.compress_vec(message.as_bytes(), &mut payload, FlushCompress::Sync).unwrap();
            payload.truncate(payload.len() - FLUSHED.len());
            let mut frame = Frame::message(payload, OpCode::Data(Data::Text), true);
            frame.header_mut().rsv1 = true;
            all.extend(bytes(frame));
        }
        all
    }

    fn heard(said: &[u8]) -> Heard {
        Learner::default().hear(said)
    }

    #[test]
    fn the_id_is_heard_in_plain_in_compressed_and_in_broken_up_messages() {
        let found = Heard::Session(ID.into());
        assert_eq!(heard(&text(config().as_bytes())), found);
        assert_eq!(heard(&compressed(&[&config()])), found);
        let other = "{\"busy\":\"busy\",\"config\":null}";
        assert_eq!(heard(&compressed(&[other, other, &config()])), found);
        let whole = config();
        let (first, rest) = whole.as_bytes().split_at(20);
        let mut parts = bytes(Frame::message(first.to_vec(), OpCode::Data(Data::Text), false));
        parts.extend(bytes(Frame::ping(&b"still there"[..])));
        parts.extend(bytes(Frame::message(rest.to_vec(), OpCode::Data(Data::Continue), true)));
        assert_eq!(heard(&parts), found);
    }

    #[test]
    fn bytes_may_come_one_by_one() {
        for said in [text(config().as_bytes()), compressed(&["{}", &config()])] {
            let mut learner = Learner::default();
            let (last, others) = said.split_last().unwrap();
            assert!(others.iter().all(|byte| learner.hear(&[*byte]) == Heard::Little));
            assert_eq!(learner.hear(&[*last]), Heard::Session(ID.into()));
        }
    }

    #[test]
    fn who_says_something_else_is_not_listened_to_for_long() {
        let chat: Vec<u8> = (0..LEARN_MESSAGES_MAX).flat_map(|_| text(b"hello")).collect();
        assert_eq!(heard(&chat), Heard::Enough);
        assert_eq!(heard(&vec![0x82; LEARN_BYTES_MAX + 1]), Heard::Enough);
        assert_eq!(
            heard(&bytes(Frame::message(vec![0; LEARN_BYTES_MAX], OpCode::Data(Data::Text), true))),
            Heard::Enough
        );
        assert_eq!(heard(&[0x81, 0x81, 1, 2, 3, 4, 5]), Heard::Enough, "masked: no worker says that");
        let short = config().replace(ID, "short");
        assert_eq!(heard(&text(short.as_bytes())), Heard::Little, "no id that could be told from a word");
    }

    #[test]
    fn a_message_that_unpacks_to_gigabytes_takes_no_memory() {
        let zeros = "0".repeat(10_000_000);
        let mut compress = Compress::new(Compression::best(), false);
        let mut payload = Vec::with_capacity(1 << 20);
        compress.compress_vec(zeros.as_bytes(), &mut payload, FlushCompress::Sync).unwrap();
        payload.truncate(LEARN_BYTES_MAX - 64);
        assert!(inflate(&payload).is_ok_and(|text| text.len() <= 4 * LEARN_BYTES_MAX));
    }

    #[test]
    fn a_path_names_its_session() {
        for path in [format!("/session/{ID}/upload/1"), format!("/app/session/{ID}/x"), format!("/session/{ID}")] {
            assert_eq!(session_of(&path), Some(ID), "{path}");
        }
        for path in ["/", "/session", "/session/", "/session/short/x", "/sessions/e5c1a8f0a3b24c5d8e9f/x"] {
            assert_eq!(session_of(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_said_is_too_strange(said: Vec<u8>, cut in 0_usize..64) {
            let mut learner = Learner::default();
            let cut = cut.min(said.len());
            if learner.hear(&said[..cut]) == Heard::Little {
                learner.hear(&said[cut..]);
            }
        }

        #[test]
        fn no_path_is_too_strange(path in "[ -~]{0,80}") {
            session_of(&path);
        }
    }
}
