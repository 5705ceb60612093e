//! What `learn` promises of any WebSocket: a session that is said is heard, however its bytes come, and nothing is kept
//! beyond the bound.

use flate2::{Compress, Compression, FlushCompress};
use tokio_tungstenite::tungstenite::protocol::frame::Frame;

use super::*;
use crate::fuzzing::Input;

const ID: &str = "e5c1a8f0a3b24c5d8e9f0123456789ab";

/// The first byte says whether the others are what a worker sends, or what it says, and how long a piece is.
pub fn learn(bytes: &[u8]) {
    let mut input = Input(bytes);
    let how = input.byte();
    let size = usize::from(how >> 1) + 1;
    if how & 1 == 0 {
        heard_alike(input.0, size);
    } else {
        is_heard(&mut input, size);
    }
}

/// The same, and no more kept than is allowed.
fn heard_alike(said: &[u8], size: usize) -> Heard {
    // Beyond the bound the piece is refused whole.
    let said = &said[..said.len().min(LEARN_BYTES_MAX)];
    let whole = Learner::default().hear(said);
    let mut learner = Learner::default();
    let mut heard = Heard::Little;
    for piece in said.chunks(size) {
        heard = learner.hear(piece);
        if heard != Heard::Little {
            break;
        }
        let message = learner.message.as_ref().map_or(0, |(_, text)| text.len());
        let kept = learner.unread.len() + learner.compressed.len() + message;
        assert!(kept <= LEARN_BYTES_MAX + FLUSHED.len() * LEARN_MESSAGES_MAX as usize, "{kept} bytes are kept");
    }
    assert_eq!(heard, whole, "in pieces of {size}");
    if let Heard::Session(id) = &whole {
        assert!(is_id(id), "{id}");
        assert_eq!(session_of(&format!("/app/session/{id}/upload/x")), Some(&**id), "its paths are known");
    }
    whole
}

/// Messages before the one that says it, in frames of all kinds.
fn is_heard(input: &mut Input<'_>, size: usize) {
    let options = input.byte();
    let mut compress = Compress::new(Compression::new(u32::from(options & 3) * 3), false);
    let mut said = Vec::new();
    let mut messages: Vec<String> = (0..usize::from(options >> 2) % LEARN_MESSAGES_MAX as usize)
        .map(|_| {
            let length = usize::from(input.byte());
            // Not itself a session.
            serde_json::json!({ "values": String::from_utf8_lossy(input.take(length)) }).to_string()
        })
        .collect();
    messages.push(format!("{{\"config\":{{\"workerId\":\"\",\"sessionId\":\"{ID}\",\"user\":null}}}}"));
    for message in messages {
        say(&mut said, message.as_bytes(), (options >> 4 & 1 == 1).then_some(&mut compress), input);
        if options >> 5 & 1 == 1 {
            compress.reset();
        }
    }
    let expected = if said.len() > LEARN_BYTES_MAX { return } else { Heard::Session(ID.into()) };
    assert_eq!(heard_alike(&said, size), expected);
}

/// One message in several frames, with pings between them.
fn say(said: &mut Vec<u8>, text: &[u8], compress: Option<&mut Compress>, input: &mut Input<'_>) {
    let is_compressed = compress.is_some();
    let mut payload = text.to_vec();
    if let Some(compress) = compress {
        payload = Vec::with_capacity(2 * text.len() + 128);
        compress.compress_vec(text, &mut payload, FlushCompress::Sync).expect("there is room");
        assert!(payload.ends_with(&FLUSHED), "it was flushed");
        payload.truncate(payload.len() - FLUSHED.len());
    }
    let mut rest = payload.as_slice();
    let mut data = Data::Text;
    loop {
        let (now, later) = rest.split_at(rest.len().min(match input.byte() {
            0 => rest.len(),
            length => usize::from(length),
        }));
        let mut frame = Frame::message(now.to_vec(), OpCode::Data(data), later.is_empty());
        frame.header_mut().rsv1 = is_compressed && data == Data::Text;
        frame.format(&mut *said).expect("memory takes it");
        if later.is_empty() {
            return;
        }
        if input.byte() & 1 == 1 {
            Frame::ping(&b"still there"[..]).format(&mut *said).expect("memory takes it");
        }
        (rest, data) = (later, Data::Continue);
    }
}
