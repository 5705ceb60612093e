//! What homing answers by itself: refusals, in words for the person who waits. Reasons for operators go to the log.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER,
};
use http::{Response, StatusCode};

use super::body::ResponseBody;
use super::limits::RETRY_AFTER_S;

const FORWARDED_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Why a request is not forwarded, or its answer not passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `OPTIONS *`: about this server, not about an app.
    AboutServer,
    Bad(&'static str),
    /// No app has this host and path.
    NoApp,
    /// The app's lists are against the client.
    Denied,
    /// The client, or all together, open connections faster than the app's rates allow.
    TooFast,
    /// An app's path without the slash that relative URLs on its pages need.
    Moved {
        location: HeaderValue,
    },
    /// Its head can be read in two ways; so can all that follows.
    Unclear,
    /// TRACE.
    Method,
    Connect,
    Expect,
    /// Of HTTP/2; hyper refuses those of HTTP/1.1.
    TooManyHeaders,
    /// Held as long as the app allows.
    NoWorker {
        hold: Duration,
    },
    /// The app has failed; waiting would not help.
    Failed,
    /// Every worker has as many connections as it may, and there will be no more workers.
    Full,
    /// Too many requests are held already.
    HeldFull,
    /// The worker refused the connection, twice.
    Unreachable,
    /// The worker broke off before its answer, or answered nonsense.
    Broke,
}

impl Refusal {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::AboutServer => StatusCode::NO_CONTENT,
            Self::Bad(_) | Self::Unclear => StatusCode::BAD_REQUEST,
            Self::NoApp => StatusCode::NOT_FOUND,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::TooFast => StatusCode::TOO_MANY_REQUESTS,
            Self::Moved { .. } => StatusCode::PERMANENT_REDIRECT,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Connect => StatusCode::NOT_IMPLEMENTED,
            Self::TooManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Expect => StatusCode::EXPECTATION_FAILED,
            Self::NoWorker { .. } | Self::Failed | Self::Full | Self::HeldFull | Self::Unreachable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Broke => StatusCode::BAD_GATEWAY,
        }
    }

    fn sentence(&self, app: &str) -> String {
        match self {
            Self::AboutServer => String::new(),
            Self::Bad(reason) => format!("Bad request: {reason}."),
            Self::Unclear => "Bad request: it can be read in more ways than one.".into(),
            Self::NoApp => "No app is served at this address.".into(),
            Self::Denied => format!("App {app} is not open to this client."),
            Self::TooFast => format!("Too many new connections to app {app}."),
            Self::Moved { .. } => "This page has a slash at its end.".into(),
            Self::Method => "This method is not allowed here.".into(),
            Self::Connect => "This is not a forward proxy.".into(),
            Self::TooManyHeaders => "The request has too many headers.".into(),
            Self::Expect => "Only the expectation 100-continue can be met.".into(),
            Self::NoWorker { hold } => format!("No worker of app {app} became ready within {} s.", hold.as_secs()),
            Self::Failed => format!("App {app} cannot be started at the moment."),
            Self::Full => format!("App {app} has as many users as it can serve at the moment."),
            Self::HeldFull => "Too many requests are waiting already.".into(),
            Self::Unreachable => format!("The worker of app {app} that should answer cannot be reached."),
            Self::Broke => format!("The worker of app {app} broke off before it answered."),
        }
    }

    /// `html`: the client is a browser that shows the answer as a page.
    pub fn response(&self, app: &str, html: bool) -> Response<ResponseBody> {
        let status = self.status();
        let sentence = self.sentence(app);
        let page = html && status.is_server_error();
        let (text, content_type) = if page {
            (html_page(status, &sentence), "text/html; charset=utf-8")
        } else {
            (if sentence.is_empty() { sentence } else { sentence + "\n" }, "text/plain; charset=utf-8")
        };
        let mut response = Response::new(ResponseBody::fixed(Bytes::from(text)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if status != StatusCode::NO_CONTENT {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        if matches!(self, Self::AboutServer | Self::Method) {
            headers.insert(ALLOW, HeaderValue::from_static(FORWARDED_METHODS));
        }
        if let Self::Moved { location } = self {
            headers.insert(LOCATION, location.clone());
        }
        if matches!(self, Self::Unclear | Self::Denied | Self::TooFast) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        response
    }
}

/// Whether the request is for a page that a person will see.
pub fn wants_html(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .any(|accept| accept.as_bytes().windows(9).any(|w| w.eq_ignore_ascii_case(b"text/html")))
}

/// Whether the request is for a page of its own, in a tab or a frame. Browsers say so (Fetch Metadata, W3C) where the
/// page comes by HTTPS or from this machine; elsewhere by what they accept.
pub fn navigates(request: &http::request::Parts) -> bool {
    if request.method != http::Method::GET {
        return false;
    }
    match request.headers.get("sec-fetch-mode") {
        Some(mode) => mode.as_bytes() == b"navigate",
        None => wants_html(&request.headers) && !request.headers.contains_key("x-requested-with"),
    }
}

fn html_page(status: StatusCode, sentence: &str) -> String {
    let title = status.canonical_reason().unwrap_or("Error");
    let sentence = escape(sentence);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>body{{font:1.1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem}}</style>\n\
         <h1>{title}</h1>\n<p>{sentence}</p>\n<p>Please try again in a moment.</p>\n</html>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn text(response: Response<ResponseBody>) -> String {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_browser_gets_a_page_and_a_script_a_line() {
        let refusal = Refusal::NoWorker { hold: Duration::from_secs(60) };
        let page = refusal.response("<sales>", true);
        assert_eq!((page.status(), &page.headers()[RETRY_AFTER]), (StatusCode::SERVICE_UNAVAILABLE, &5.into()));
        assert_eq!(page.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
        let html = text(page).await;
        assert!(html.contains("No worker of app &lt;sales&gt; became ready within 60 s."), "{html}");
        let line = text(refusal.response("sales", false)).await;
        assert_eq!(line, "No worker of app sales became ready within 60 s.\n");
    }

    #[test]
    fn refused_methods_are_told_which_ones_are_not() {
        assert_eq!(Refusal::Method.response("a", false).headers()[ALLOW], FORWARDED_METHODS);
        assert!(Refusal::Bad("x").response("a", true).headers()[CONTENT_TYPE].as_bytes().starts_with(b"text/plain"));
    }

    #[test]
    fn only_navigations_want_html() {
        let with = |accept| HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
        assert!(wants_html(&with("application/xhtml+xml, Text/HTML;q=0.9")));
        assert!(!wants_html(&with("*/*")));
        assert!(!wants_html(&HeaderMap::new()));
    }
}
