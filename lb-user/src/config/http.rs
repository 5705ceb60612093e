//! How the HTTP path treats an app's requests: what it bounds, how long it waits, what it says when it refuses.

use std::sync::Arc;
use std::time::Duration;

use super::Rate;

/// Connections of one listener at once.
pub const CONNECTIONS_MAX: u32 = 65_536;
/// Bytes of a request's or response's head.
pub const HEAD_BYTES_MAX: u32 = 32 * 1024;
/// Requests held for a worker at once, over all apps.
pub const HELD_MAX: u32 = 4_096;

/// `[app.http]`, and those of `[app.timeouts]` that concern the HTTP path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Open client connections, 1 to 65,536; `None`: as many as their listener takes.
    pub max_connections: Option<u32>,
    /// Bytes of a request's head, names and values of its headers and its target; `None`: as many as homing reads.
    pub head_max: Option<u32>,
    /// Bytes of a request's body; `None`: any.
    pub body_max: Option<u64>,
    /// Requests of one client.
    pub rate: Option<Rate>,
    /// Requests that may wait for a worker, or for room at one, at once, 0 to 4,096.
    pub queue: u32,
    /// What browsers get in place of homing's own page.
    pub error_page: Option<Arc<ErrorPage>>,
    /// A new client waits this long for room where all workers are full and there will be no more of them.
    pub full: Duration,
    /// Silence of a client in the midst of a request's body; `None`: for ever.
    pub body: Option<Duration>,
    /// From the end of a request to the head of its answer; `None`: for ever.
    pub response: Option<Duration>,
    /// Silence of both ends of a WebSocket; `None`: for ever.
    pub websocket_idle: Option<Duration>,
    /// Silence of the client of a WebSocket; `None`: for ever.
    pub websocket_read: Option<Duration>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            max_connections: None,
            head_max: None,
            body_max: None,
            rate: None,
            queue: 1_024,
            error_page: None,
            full: Duration::from_secs(5),
            body: Some(Duration::from_secs(60)),
            response: Some(Duration::from_secs(10 * 60)),
            websocket_idle: None,
            websocket_read: None,
        }
    }
}

/// An HTML page with places for what is to be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorPage(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Said(Said),
}

/// What an error page can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    App,
    Status,
    Title,
    Message,
    RetryAfter,
    RequestId,
}

impl Said {
    const ALL: [(&str, Self); 6] = [
        ("app", Self::App),
        ("status", Self::Status),
        ("title", Self::Title),
        ("message", Self::Message),
        ("retry_after", Self::RetryAfter),
        ("request_id", Self::RequestId),
    ];
}

impl ErrorPage {
    /// Text in which `{{message}}` and its like are replaced.
    ///
    /// # Errors
    /// Which placeholder is not known, and in which line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let line = 1 + text[..text.len() - after.len()].matches('\n').count();
            let (name, behind) = after.split_once("}}").ok_or_else(|| format!("line {line}: `{{{{` without `}}}}`"))?;
            let said = Said::ALL.iter().find(|(known, _)| *known == name.trim()).ok_or_else(|| {
                let known: Vec<&str> = Said::ALL.iter().map(|(known, _)| *known).collect();
                let name: String = name.trim().chars().take(40).collect();
                format!("line {line}: unknown placeholder `{name}`; known are {}", known.join(", "))
            })?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Said(said.1));
            rest = behind;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }

    /// The page with what `say` answers, which is text and no HTML.
    pub fn render(&self, say: impl Fn(Said) -> String) -> String {
        let pieces = self.0.iter().map(|part| match part {
            Part::Text(text) => text.clone(),
            Part::Said(what) => escape(&say(*what)),
        });
        pieces.collect()
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_replaced_by_text_that_cannot_be_html() {
        let page = ErrorPage::parse("<h1>{{ title }}</h1>\n<p>{{message}}</p>{{message}}").unwrap();
        let html = page.render(|said| match said {
            Said::Title => "Full".to_owned(),
            _ => "<b> & 'x'".to_owned(),
        });
        assert_eq!(html, "<h1>Full</h1>\n<p>&lt;b&gt; &amp; &#39;x&#39;</p>&lt;b&gt; &amp; &#39;x&#39;");
        assert_eq!(ErrorPage::parse("plain { } text").unwrap().render(|_| unreachable!()), "plain { } text");
    }

    #[test]
    fn what_is_not_known_is_told_with_its_line() {
        assert_eq!(ErrorPage::parse("a\n{{name"), Err("line 2: `{{` without `}}`".to_owned()));
        let error = ErrorPage::parse("{{title}}\n\n{{mesage}}").unwrap_err();
        assert_eq!(
            error,
            "line 3: unknown placeholder `mesage`; known are app, status, title, message, retry_after, request_id"
        );
    }
}
