//! One line: what is known of a request when it is over, and the text that this makes.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::HeaderValue;
use http::{Method, Version};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Format;

/// A request that is over.
#[derive(Clone, Debug)]
pub struct Line {
    /// When its head had come.
    pub began: SystemTime,
    /// From there to the last byte of its answer, or to the end of its tunnel.
    pub took: Duration,
    pub client: IpAddr,
    /// It came by TLS.
    pub is_secure: bool,
    /// Means nothing where there is no target.
    pub method: Method,
    pub version: Version,
    pub host: Option<HeaderValue>,
    /// As the client sent it. Empty where its head could not be read.
    pub target: String,
    pub referer: Option<HeaderValue>,
    pub user_agent: Option<HeaderValue>,
    pub id: HeaderValue,
    pub app: Option<Arc<str>>,
    pub status: u16,
    /// Of the answer's body, or of a tunnel towards the client.
    pub bytes: u64,
    pub fate: Fate,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Placed {
        /// `N` of `APP/N`.
        worker: u32,
        /// What decided that.
        rule: &'static str,
        /// How long it waited for a worker.
        held: Duration,
    },
    /// By homing itself, and why.
    Refused(&'static str),
    /// The client went away before there was an answer.
    Abandoned,
}

#[derive(Serialize)]
struct Json<'a> {
    time: String,
    client: IpAddr,
    scheme: &'static str,
    method: Option<&'a str>,
    host: Option<String>,
    target: Option<&'a str>,
    protocol: &'static str,
    status: u16,
    bytes: u64,
    duration_ms: f64,
    app: Option<&'a str>,
    worker: Option<String>,
    rule: Option<&'static str>,
    held_ms: Option<f64>,
    refused: Option<&'static str>,
    request_id: String,
    referer: Option<String>,
    user_agent: Option<String>,
}

impl Line {
    /// Appends the line and its end.
    pub(super) fn write(&self, format: Format, text: &mut String) {
        match format {
            Format::Combined => self.write_combined(text),
            Format::Json => self.write_json(text),
        }
        text.push('\n');
    }

    fn write_combined(&self, text: &mut String) {
        let time = OffsetDateTime::from(self.began);
        let month = &time.month().to_string()[..3];
        // Writing to a String does not fail.
        let _ = write!(text, "{} - - [{:02}/{month}/{:04}:", self.client, time.day(), time.year());
        let _ = write!(text, "{:02}:{:02}:{:02} +0000] \"", time.hour(), time.minute(), time.second());
        match self.asked() {
            Some((method, target)) => {
                let _ = write!(text, "{method} ");
                quote(text, target.as_bytes());
                let _ = write!(text, " {}", protocol(self.version));
            }
            None => text.push('-'),
        }
        let _ = write!(text, "\" {} {} \"", self.status, self.bytes);
        quote(text, bytes_of(self.referer.as_ref()));
        text.push_str("\" \"");
        quote(text, bytes_of(self.user_agent.as_ref()));
        let _ = write!(text, "\" {} ", self.worker().as_deref().or(self.app.as_deref()).unwrap_or("-"));
        match self.fate {
            Fate::Placed { rule, held, .. } => {
                let _ = write!(text, "{rule} held={}", held.as_millis());
            }
            Fate::Refused(why) => {
                let _ = write!(text, "refused={why}");
            }
            Fate::Abandoned => text.push_str("abandoned"),
        }
        let _ = write!(text, " ms={} id=", self.took.as_millis());
        quote(text, self.id.as_bytes());
    }

    fn write_json(&self, text: &mut String) {
        let words = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let (rule, held, refused) = match self.fate {
            Fate::Placed { rule, held, .. } => (Some(rule), Some(held), None),
            Fate::Refused(why) => (None, None, Some(why)),
            Fate::Abandoned => (None, None, Some("abandoned")),
        };
        let json = Json {
            time: OffsetDateTime::from(self.began).format(&Rfc3339).unwrap_or_default(),
            client: self.client,
            scheme: if self.is_secure { "https" } else { "http" },
            method: self.asked().map(|(method, _)| method),
            host: self.host.as_ref().map(words),
            target: self.asked().map(|(_, target)| target),
            protocol: protocol(self.version),
            status: self.status,
            bytes: self.bytes,
            duration_ms: millis(self.took),
            app: self.app.as_deref(),
            worker: self.worker(),
            rule,
            held_ms: held.map(millis),
            refused,
            request_id: words(&self.id),
            referer: self.referer.as_ref().map(words),
            user_agent: self.user_agent.as_ref().map(words),
        };
        text.push_str(&serde_json::to_string(&json).expect("texts and numbers are JSON"));
    }

    /// Method and target, if they could be read.
    fn asked(&self) -> Option<(&str, &str)> {
        (!self.target.is_empty()).then(|| (self.method.as_str(), &*self.target))
    }

    /// `APP/N`.
    fn worker(&self) -> Option<String> {
        match self.fate {
            Fate::Placed { worker, .. } => Some(format!("{}/{worker}", self.app.as_deref().unwrap_or("-"))),
            Fate::Refused(_) | Fate::Abandoned => None,
        }
    }
}

/// To a thousandth.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

fn bytes_of(value: Option<&HeaderValue>) -> &[u8] {
    value.map_or(b"-", HeaderValue::as_bytes)
}

/// What a client sent cannot end the quotes or the line, as with nginx.
fn quote(text: &mut String, bytes: &[u8]) {
    for &byte in bytes {
        match byte {
            b'"' | b'\\' | ..0x20 | 0x7f.. => {
                let _ = write!(text, "\\x{byte:02X}");
            }
            _ => text.push(char::from(byte)),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn line() -> Line {
        Line {
            began: SystemTime::UNIX_EPOCH + Duration::from_millis(1_763_734_606_250),
            took: Duration::from_micros(12_345),
            client: "2001:db8::7".parse().unwrap(),
            is_secure: true,
            method: Method::GET,
            version: Version::HTTP_2,
            host: Some(HeaderValue::from_static("sales.example.org")),
            target: "/a?b=\"c\"".to_owned(),
            referer: None,
            user_agent: Some(HeaderValue::from_bytes(b"Mozilla \"\\\xff").unwrap()),
            id: HeaderValue::from_static("7f"),
            app: Some("sales".into()),
            status: 200,
            bytes: 5_120,
            fate: Fate::Placed { worker: 3, rule: "cookie_kept", held: Duration::from_millis(1_500) },
        }
    }

    fn text(line: &Line, format: Format) -> String {
        let mut text = String::new();
        line.write(format, &mut text);
        text
    }

    #[test]
    fn a_combined_line_is_what_other_servers_write_and_what_homing_decided() {
        assert_eq!(
            text(&line(), Format::Combined),
            "2001:db8::7 - - [21/Nov/2025:14:16:46 +0000] \"GET /a?b=\\x22c\\x22 HTTP/2.0\" 200 5120 \"-\" \
             \"Mozilla \\x22\\x5C\\xFF\" sales/3 cookie_kept held=1500 ms=12 id=7f\n"
        );
        let refused = Line { fate: Fate::Refused("full"), status: 503, ..line() };
        assert!(text(&refused, Format::Combined).ends_with("\" sales refused=full ms=12 id=7f\n"));
        let lost = Line { fate: Fate::Refused("no_app"), app: None, ..line() };
        assert!(text(&lost, Format::Combined).ends_with("\" - refused=no_app ms=12 id=7f\n"));
        let unread = Line { fate: Fate::Refused("bad"), target: String::new(), ..lost };
        assert!(text(&unread, Format::Combined).contains("] \"-\" 200 5120 "), "{}", text(&unread, Format::Combined));
    }

    #[test]
    fn what_a_client_sent_ends_no_quote_and_no_line() {
        let all: Vec<u8> = (0..=u8::MAX).collect();
        let mut quoted = String::new();
        quote(&mut quoted, &all);
        assert!(quoted.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'"'), "{quoted}");
        // What a header cannot hold a target may, as it is read.
        let target = String::from_utf8_lossy(&all).into_owned();
        for format in [Format::Combined, Format::Json] {
            let text = text(&Line { target: target.clone(), ..line() }, format);
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }

    #[test]
    fn a_json_line_has_every_field_every_time() {
        let json: serde_json::Value = serde_json::from_str(&text(&line(), Format::Json)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "time": "2025-11-21T14:16:46.25Z", "client": "2001:db8::7", "scheme": "https", "method": "GET",
                "host": "sales.example.org", "target": "/a?b=\"c\"", "protocol": "HTTP/2.0", "status": 200, "bytes": 5120,
                "duration_ms": 12.345, "app": "sales", "worker": "sales/3", "rule": "cookie_kept", "held_ms": 1500.0,
                "refused": null, "request_id": "7f", "referer": null, "user_agent": "Mozilla \"\\\u{fffd}",
            })
        );
        let refused = Line { fate: Fate::Refused("full"), ..line() };
        let other: serde_json::Value = serde_json::from_str(&text(&refused, Format::Json)).unwrap();
        let keys = |json: &serde_json::Value| json.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!((&other["refused"], keys(&other)), (&"full".into(), keys(&json)));
    }
}
