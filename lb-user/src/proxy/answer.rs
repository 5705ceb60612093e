//! What homing answers by itself: refusals, in words for the person who waits, or in JSON for a program. Reasons for
//! operators go to the log.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, REFRESH, RETRY_AFTER,
};
use http::{Method, Response, StatusCode};

use super::body::ResponseBody;
use super::counters::Counter;
use super::headers::X_REQUEST_ID;
use super::limits::RETRY_AFTER_S;
use crate::config::{ErrorPage, Said};

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
    /// Larger than the app's `http.head_max`.
    HeadTooLarge,
    /// Larger than the app's `http.body_max`.
    BodyTooLarge,
    /// The client fell silent in the midst of its body.
    BodyTooSlow,
    /// The client asks faster than the app's `http.client_rate`.
    TooManyRequests,
    /// The app has as many connections as its `http.max_connections`.
    TooManyConnections,
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
    /// The worker did not answer in time.
    TooLate {
        after: Duration,
    },
}

/// Which kind of answer a client understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A browser shows it as a page.
    Html {
        /// Nothing is lost when it asks again by itself.
        may_retry: bool,
    },
    Json,
    Plain,
}

impl Form {
    pub fn of(method: &Method, accept: Option<&HeaderValue>) -> Self {
        let accepts = |kind: &[u8]| {
            accept.is_some_and(|accept| accept.as_bytes().windows(kind.len()).any(|w| w.eq_ignore_ascii_case(kind)))
        };
        if accepts(b"text/html") {
            Self::Html { may_retry: *method == Method::GET }
        } else if accepts(b"application/json") || accepts(b"+json") {
            Self::Json
        } else {
            Self::Plain
        }
    }
}

/// What an answer is about.
pub struct About<'a> {
    pub app: &'a str,
    /// In the app's own words, if it has any.
    pub page: Option<&'a ErrorPage>,
    pub request_id: &'a str,
}

impl Refusal {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::AboutServer => StatusCode::NO_CONTENT,
            Self::Bad(_) | Self::Unclear => StatusCode::BAD_REQUEST,
            Self::NoApp => StatusCode::NOT_FOUND,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::TooFast | Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Moved { .. } => StatusCode::PERMANENT_REDIRECT,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Connect => StatusCode::NOT_IMPLEMENTED,
            Self::TooManyHeaders | Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Expect => StatusCode::EXPECTATION_FAILED,
            Self::NoWorker { .. }
            | Self::Failed
            | Self::Full
            | Self::HeldFull
            | Self::Unreachable
            | Self::TooManyConnections => StatusCode::SERVICE_UNAVAILABLE,
            Self::Broke => StatusCode::BAD_GATEWAY,
            Self::TooLate { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// For logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::AboutServer => "about_server",
            Self::Bad(_) => "bad",
            Self::Unclear => "unclear",
            Self::NoApp => "no_app",
            Self::Denied => "denied",
            Self::TooFast => "too_fast",
            Self::Moved { .. } => "moved",
            Self::Method => "method",
            Self::Connect => "connect",
            Self::Expect => "expect",
            Self::TooManyHeaders => "too_many_headers",
            Self::HeadTooLarge => "head_too_large",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTooSlow => "body_too_slow",
            Self::TooManyRequests => "too_many_requests",
            Self::TooManyConnections => "too_many_connections",
            Self::NoWorker { .. } => "no_worker",
            Self::Failed => "failed",
            Self::Full => "full",
            Self::HeldFull => "queue_full",
            Self::Unreachable => "unreachable",
            Self::Broke => "broke",
            Self::TooLate { .. } => "too_late",
        }
    }

    /// Where it is counted, unless that is done by who finds it.
    pub fn counter(&self) -> Option<Counter> {
        match self {
            Self::Bad(_) | Self::Unclear | Self::Method | Self::Connect | Self::Expect | Self::TooManyHeaders => {
                Some(Counter::RefusedBadRequest)
            }
            Self::NoApp => Some(Counter::RefusedNoApp),
            Self::HeadTooLarge | Self::BodyTooLarge => Some(Counter::RefusedTooLarge),
            Self::BodyTooSlow => Some(Counter::RefusedBodySlow),
            Self::TooManyRequests => Some(Counter::RefusedRate),
            Self::TooLate { .. } => Some(Counter::UpstreamTimeout),
            Self::AboutServer
            | Self::Denied
            | Self::TooFast
            | Self::TooManyConnections
            | Self::Moved { .. }
            | Self::NoWorker { .. }
            | Self::Failed
            | Self::Full
            | Self::HeldFull
            | Self::Unreachable
            | Self::Broke => None,
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
            Self::HeadTooLarge => format!("The request's headers are larger than app {app} takes."),
            Self::BodyTooLarge => format!("This is larger than app {app} takes."),
            Self::BodyTooSlow => "The rest of the request did not come in time.".into(),
            Self::TooManyRequests => format!("Too many requests to app {app}."),
            Self::TooManyConnections => format!("App {app} has as many connections as it may have at the moment."),
            Self::Expect => "Only the expectation 100-continue can be met.".into(),
            Self::NoWorker { hold } => format!("No worker of app {app} became ready within {} s.", hold.as_secs()),
            Self::Failed => format!("App {app} cannot be started at the moment."),
            Self::Full => format!("App {app} has as many users as it can serve at the moment."),
            Self::HeldFull => "Too many requests are waiting already.".into(),
            Self::Unreachable => format!("The worker of app {app} that should answer cannot be reached."),
            Self::Broke => format!("The worker of app {app} broke off before it answered."),
            Self::TooLate { after } => format!("App {app} did not answer within {} s.", after.as_secs()),
        }
    }

    /// Whether the client may come again soon with better luck.
    fn is_temporary(&self) -> bool {
        matches!(self.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
    }

    pub fn response(&self, about: &About<'_>, form: Form) -> Response<ResponseBody> {
        let status = self.status();
        let (text, content_type) = self.words(about, form);
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
        if matches!(self, Self::Unclear | Self::Denied | Self::TooFast | Self::TooManyConnections | Self::BodyTooSlow) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.is_temporary() {
            headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
            if form == (Form::Html { may_retry: true }) {
                // Browsers load the page again by themselves (HTML standard, "shared declarative refresh steps").
                headers.insert(REFRESH, HeaderValue::from(RETRY_AFTER_S));
            }
        }
        if let Ok(id) = HeaderValue::from_str(about.request_id) {
            headers.insert(X_REQUEST_ID, id);
        }
        response
    }

    fn words(&self, about: &About<'_>, form: Form) -> (String, &'static str) {
        let (status, sentence) = (self.status(), self.sentence(about.app));
        match form {
            Form::Html { .. } if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                let title = status.canonical_reason().unwrap_or("Error");
                let retry = self.is_temporary().then(|| RETRY_AFTER_S.to_string());
                let html = about.page.unwrap_or(&OWN_PAGE).render(|said| match said {
                    Said::App => about.app.to_owned(),
                    Said::Status => status.as_str().to_owned(),
                    Said::Title => title.to_owned(),
                    Said::Message => sentence.clone(),
                    Said::RetryAfter => retry.clone().unwrap_or_default(),
                    Said::RequestId => about.request_id.to_owned(),
                });
                (html, "text/html; charset=utf-8")
            }
            Form::Json if status.is_client_error() || status.is_server_error() => {
                let problem = Problem {
                    title: status.canonical_reason().unwrap_or("Error"),
                    status: status.as_u16(),
                    detail: sentence,
                    app: about.app,
                    request_id: about.request_id,
                    retry_after: self.is_temporary().then_some(RETRY_AFTER_S),
                };
                let json = serde_json::to_string(&problem).expect("texts and numbers are JSON");
                (json + "\n", "application/problem+json")
            }
            _ if sentence.is_empty() => (sentence, "text/plain; charset=utf-8"),
            _ => (sentence + "\n", "text/plain; charset=utf-8"),
        }
    }
}

/// RFC 9457, of type about:blank: the status says it all, for a program.
#[derive(serde::Serialize)]
struct Problem<'a> {
    title: &'a str,
    status: u16,
    /// The sentence that people read.
    detail: String,
    app: &'a str,
    request_id: &'a str,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u32>,
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

/// Where an app has none.
static OWN_PAGE: LazyLock<ErrorPage> =
    LazyLock::new(|| ErrorPage::parse(include_str!("refused.html")).expect("a test has parsed it"));

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn text(response: Response<ResponseBody>) -> String {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    const RETRIED: Form = Form::Html { may_retry: true };
    const ABOUT: About<'static> = About { app: "<sales>", page: None, request_id: "7f" };

    #[tokio::test]
    async fn a_browser_gets_a_page_that_it_loads_again_and_a_script_a_line() {
        let refusal = Refusal::NoWorker { hold: Duration::from_secs(60) };
        let page = refusal.response(&ABOUT, RETRIED);
        assert_eq!((page.status(), &page.headers()[RETRY_AFTER]), (StatusCode::SERVICE_UNAVAILABLE, &5.into()));
        assert_eq!(page.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!((&page.headers()[REFRESH], &page.headers()[X_REQUEST_ID]), (&5.into(), &"7f".parse().unwrap()));
        let html = text(page).await;
        assert!(html.contains("No worker of app &lt;sales&gt; became ready within 60 s."), "{html}");
        let posted = refusal.response(&ABOUT, Form::Html { may_retry: false });
        assert!(!posted.headers().contains_key(REFRESH), "a form would be lost");
        let line = refusal.response(&About { app: "sales", ..ABOUT }, Form::Plain);
        assert!(!line.headers().contains_key(REFRESH));
        assert_eq!(text(line).await, "No worker of app sales became ready within 60 s.\n");
    }

    #[tokio::test]
    async fn a_program_gets_json() {
        let answer = Refusal::Full.response(&ABOUT, Form::Json);
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/problem+json");
        let json: serde_json::Value = serde_json::from_str(&text(answer).await).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "title": "Service Unavailable", "status": 503, "app": "<sales>", "request_id": "7f", "retry_after": 5,
                "detail": "App <sales> has as many users as it can serve at the moment.",
            })
        );
        let bad = text(Refusal::Bad("no host").response(&ABOUT, Form::Json)).await;
        assert!(!bad.contains("retry_after"), "{bad}");
    }

    #[tokio::test]
    async fn an_app_has_its_own_words() {
        let page = ErrorPage::parse("{{status}} {{title}} {{app}} {{message}} {{retry_after}} {{request_id}}").unwrap();
        let about = About { page: Some(&page), ..ABOUT };
        let busy = text(Refusal::TooManyRequests.response(&about, RETRIED)).await;
        assert_eq!(busy, "429 Too Many Requests &lt;sales&gt; Too many requests to app &lt;sales&gt;. 5 7f");
        let late = Refusal::TooLate { after: Duration::from_secs(9) };
        let late = text(late.response(&about, RETRIED)).await;
        assert_eq!(late, "504 Gateway Timeout &lt;sales&gt; App &lt;sales&gt; did not answer within 9 s.  7f");
    }

    #[test]
    fn refused_methods_are_told_which_ones_are_not() {
        assert_eq!(Refusal::Method.response(&ABOUT, Form::Plain).headers()[ALLOW], FORWARDED_METHODS);
        assert!(
            Refusal::Bad("x").response(&ABOUT, RETRIED).headers()[CONTENT_TYPE].as_bytes().starts_with(b"text/plain")
        );
    }

    #[test]
    fn clients_are_answered_in_what_they_accept() {
        let form = |method, accept| Form::of(&method, Some(&HeaderValue::from_static(accept)));
        assert_eq!(form(Method::GET, "Text/HTML, application/json"), RETRIED);
        assert_eq!(form(Method::POST, "text/html"), Form::Html { may_retry: false });
        assert_eq!(form(Method::GET, "application/json, */*"), Form::Json);
        assert_eq!(form(Method::GET, "application/vnd.api+json"), Form::Json);
        assert_eq!((form(Method::GET, "*/*"), Form::of(&Method::GET, None)), (Form::Plain, Form::Plain));
    }

    #[test]
    fn only_navigations_want_html() {
        let with = |accept| HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
        assert!(wants_html(&with("application/xhtml+xml, Text/HTML;q=0.9")));
        assert!(!wants_html(&with("*/*")));
        assert!(!wants_html(&HeaderMap::new()));
    }
}
