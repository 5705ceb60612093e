//! Spans of the HTTP path's requests, for an OpenTelemetry collector (OTLP over HTTP, in protobuf). There are some only where
//! `homing.traces` names a collector.
//!
//! Who serves a request begins a [`Span`], tells its worker of it, and ends it with the [`Line`] of the access log. A thread of
//! the SDK's collects spans, 2,048 at most, and sends them every five seconds, or 512 at once. Serving never waits for it.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, Request, Response, Version};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HeaderInjector, HttpClient, HttpError};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::access::{Dropped, Fate, Line};

/// For the collector to take a batch.
const PATIENCE: Duration = Duration::from_secs(3);
/// For what is left at the end.
const PARTING: Duration = Duration::from_secs(1);
/// Bytes of the collector's answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const TRACESTATE: &str = "tracestate";

/// Who is told of what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the collector takes traces, an `http://` URL with its path.
    pub endpoint: String,
    /// One request in so many has a span, unless a trusted proxy has decided.
    pub one_in: u32,
}

/// Makes spans and has them sent.
pub struct Spans {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Spans {
    /// Must be called on the runtime, which sends. `dropped` is told of spans that the collector did not take.
    ///
    /// # Panics
    /// When the endpoint is no URL.
    pub fn new(settings: &Settings, dropped: Dropped) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(Courier { runtime: Handle::current(), client })
            .with_endpoint(&settings.endpoint)
            .with_timeout(PATIENCE)
            .build()
            .expect("the configuration has a URL");
        let exporter = Counted { exporter, endpoint: settings.endpoint.clone(), dropped, is_failing: false.into() };
        let sampler = Sampler::TraceIdRatioBased(1.0 / f64::from(settings.one_in));
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_resource(Resource::builder().with_service_name("homing").with_attribute(version).build())
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .with_batch_exporter(exporter)
            .build();
        Self { tracer: provider.tracer("homing"), provider }
    }

    /// The span of a request whose head has come, if it is to have one. What the headers say of a trace counts only
    /// if who sent them is `believed`: anybody could have everything traced otherwise.
    pub fn begin(&self, method: &Method, headers: &HeaderMap, believed: bool) -> Option<Span> {
        let parent = match believed {
            true => TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers)),
            false => Context::new(),
        };
        let builder = self.tracer.span_builder(method.as_str().to_owned()).with_kind(SpanKind::Server);
        let span = self.tracer.build_with_context(builder, &parent);
        span.is_recording().then(|| Span { span, tracer: self.tracer.clone() })
    }

    /// Sends what is left, for a second at most. Blocks.
    pub fn finish(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(PARTING) {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}

/// A request under way.
pub struct Span {
    span: opentelemetry_sdk::trace::Span,
    tracer: SdkTracer,
}

impl Span {
    /// Tells the worker whose child its own span is (`traceparent`, W3C Trace Context).
    pub fn tell(&self, headers: &mut HeaderMap) {
        TraceContextPropagator::new().inject_context(&self.context(), &mut HeaderInjector(headers));
        if headers.get(TRACESTATE).is_some_and(HeaderValue::is_empty) {
            headers.remove(TRACESTATE);
        }
    }

    /// The request is over. Names of attributes are those of OpenTelemetry's conventions for HTTP.
    pub fn end(mut self, line: &Line) {
        if let Some(app) = &line.app {
            self.span.update_name(format!("{} {app}", line.method));
            self.set("homing.app", app.to_string());
        }
        let (path, query) = line.target.split_once('?').unwrap_or((&line.target, ""));
        self.set("http.request.method", line.method.to_string());
        self.set("url.scheme", if line.is_secure { "https" } else { "http" });
        self.set("url.path", path.to_owned());
        if !query.is_empty() {
            self.set("url.query", query.to_owned());
        }
        self.set("client.address", line.client.to_string());
        self.set("network.protocol.version", if line.version == Version::HTTP_2 { "2" } else { "1.1" });
        self.set("http.response.status_code", i64::from(line.status));
        self.set("http.response.body.size", i64::try_from(line.bytes).unwrap_or(i64::MAX));
        self.set("homing.request_id", text(&line.id));
        for (name, value) in [("server.address", &line.host), ("user_agent.original", &line.user_agent)] {
            if let Some(value) = value {
                self.set(name, text(value));
            }
        }
        if line.status >= 500 {
            self.span.set_status(Status::error(""));
        }
        match line.fate {
            Fate::Placed { worker, rule, held } => {
                self.set("homing.worker", i64::from(worker));
                self.set("homing.rule", rule);
                if !held.is_zero() {
                    let waited = self.tracer.span_builder("wait for a worker").with_start_time(line.began);
                    let mut waited = self.tracer.build_with_context(waited, &self.context());
                    waited.end_with_timestamp(line.began + held);
                }
            }
            Fate::Refused(why) => self.set("homing.refused", why),
            Fate::Abandoned => self.set("homing.refused", "abandoned"),
        }
        self.span.end();
    }

    fn set(&mut self, name: &'static str, value: impl Into<opentelemetry::Value>) {
        self.span.set_attribute(KeyValue::new(name, value));
    }

    fn context(&self) -> Context {
        Context::new().with_remote_span_context(self.span.span_context().clone())
    }
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// The exporter, and what became of what it sent.
struct Counted {
    exporter: opentelemetry_otlp::SpanExporter,
    endpoint: String,
    dropped: Dropped,
    is_failing: AtomicBool,
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.exporter.fmt(f)
    }
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let exported = self.exporter.export(batch).await;
        let has_failed = exported.is_err();
        if let Err(error) = &exported {
            (self.dropped)(count as u64);
            tracing::debug!(%error, count, "spans were not taken");
        }
        // Said once, not every five seconds.
        match (self.is_failing.swap(has_failed, Ordering::Relaxed), &exported) {
            (false, Err(error)) => tracing::warn!(
                %error,
                endpoint = self.endpoint,
                "the collector of traces takes no spans; is it running, and is homing.traces right?"
            ),
            (true, Ok(())) => tracing::info!(endpoint = self.endpoint, "the collector of traces takes spans again"),
            _ => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Carries batches on homing's runtime, which the SDK's thread is not part of.
#[derive(Debug)]
struct Courier {
    runtime: Handle,
    client: Client<HttpConnector, Full<Bytes>>,
}

type Sent<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for Courier {
    fn send_bytes<'a, 'b>(&'a self, request: Request<Bytes>) -> Sent<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        let client = self.client.clone();
        let sending = async move {
            let (parts, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
            Ok(Response::from_parts(parts, body))
        };
        // Clocks, too, are the runtime's.
        let sent = self.runtime.spawn(async { timeout(PATIENCE, sending).await });
        Box::pin(async move { sent.await?? })
    }
}
