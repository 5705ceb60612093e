//! What a collector of traces gets of requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use super::Counter;
use super::testing::*;
use crate::config::{Affinity, Route};
use crate::routing::{AppRoute, Door};
use crate::spans::Settings;

/// A collector, and what it has got so far.
struct Collector {
    settings: Settings,
    got: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    /// Which answers with this status.
    async fn start(status: StatusCode, one_in: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let got = Arc::<Mutex<Vec<Span>>>::default();
        let spans = Arc::clone(&got);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let spans = Arc::clone(&spans);
                let service = service_fn(move |request: Request<Incoming>| {
                    let spans = Arc::clone(&spans);
                    async move {
                        assert_eq!((request.uri().path(), request.method().as_str()), ("/v1/traces", "POST"));
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let batch = ExportTraceServiceRequest::decode(body).unwrap();
                        let resources = batch.resource_spans.into_iter();
                        let new = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
                        spans.lock().await.extend(new);
                        Response::builder().status(status).body(Empty::<Bytes>::new())
                    }
                });
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { settings: Settings { endpoint, one_in }, got }
    }

    async fn world(&self, app: AppRoute) -> World {
        world_told(&[Route::default()], vec![app], None, Some(&self.settings)).await
    }

    /// All spans, once homing has sent them.
    async fn spans(self, world: &World) -> Vec<Span> {
        let proxy = world.proxy.clone();
        tokio::task::spawn_blocking(move || proxy.finish()).await.unwrap();
        std::mem::take(&mut *self.got.lock().await)
    }
}

fn attributes(span: &Span) -> BTreeMap<&str, String> {
    let shown = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let attributes = span.attributes.iter();
    attributes.map(|pair| (pair.key.as_str(), shown(pair.value.as_ref().unwrap().value.as_ref().unwrap()))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_a_span_which_its_worker_is_told_of() {
    let collector = Collector::start(StatusCode::OK, 1).await;
    let workers = workers(1).await;
    let world = collector.world(route(Affinity::Cookie, routes(&workers))).await;
    let answer = world
        .raw("GET /a?token=secret HTTP/1.1\r\nHost: a\r\nConnection: close\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n")
        .await;
    let spans = collector.spans(&world).await;
    assert_eq!(spans.len(), 1, "{spans:#?}");
    let (span, told) = (&spans[0], attributes(&spans[0]));
    assert_eq!((span.name.as_str(), span.kind()), ("GET sales", SpanKind::Server));
    assert_ne!(hex(&span.trace_id), "0af7651916cd43dd8448eb211c80319c", "a stranger decides nothing");
    let traceparent = format!("traceparent: 00-{}-{}-01\n", hex(&span.trace_id), hex(&span.span_id));
    assert!(answer.contains(&traceparent), "{traceparent}{answer}");
    assert!(!answer.contains("tracestate"), "{answer}");
    for (name, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("url.path", "/a"),
        ("url.scheme", "http"),
        ("client.address", "127.0.0.1"),
        ("server.address", "a"),
        ("homing.app", "sales"),
        ("homing.worker", "0"),
        ("homing.rule", "cookie_new"),
    ] {
        assert_eq!(told.get(name).map(String::as_str), Some(value), "{name} of {told:#?}");
    }
    assert!(!told.contains_key("url.query"), "people put secrets there: {told:#?}");
    assert!(answer.contains(&format!("x-request-id: {}\n", told["homing.request_id"])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_a_worker_is_a_span_of_its_own_and_a_refusal_an_error() {
    let collector = Collector::start(StatusCode::OK, 1).await;
    let workers = workers(1).await;
    let world = collector.world(route(Affinity::Cookie, vec![])).await;
    let (answer, ()) = tokio::join!(world.get(""), async {
        world.notice().await;
        world.publish(route(Affinity::Cookie, routes(&workers)));
    });
    assert_eq!(answer.status(), 200);
    world.publish(AppRoute { failed: Some("x".into()), ..route(Affinity::Ip, vec![]) });
    assert_eq!(world.get("").await.status(), 503);
    let spans = collector.spans(&world).await;
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let (requests, waits) = (named("GET sales"), named("wait for a worker"));
    assert_eq!((requests.len(), waits.len()), (2, 1), "{spans:#?}");
    let waited = requests.iter().find(|request| request.span_id == waits[0].parent_span_id).unwrap();
    assert!(waits[0].end_time_unix_nano > waits[0].start_time_unix_nano);
    let refused = requests.iter().find(|request| request.span_id != waited.span_id).unwrap();
    assert_eq!(attributes(refused)["homing.refused"], "failed");
    assert_eq!(refused.status.as_ref().unwrap().code(), SpanStatus::Error);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxys_trace_goes_on_and_what_it_does_not_sample_has_no_span() {
    for (flags, count) in [("01", 1), ("00", 0)] {
        let collector = Collector::start(StatusCode::OK, 1_000_000).await;
        let workers = workers(1).await;
        let app = || route(Affinity::Cookie, routes(&workers));
        let world = collector.world(app()).await;
        world.publish_door(Door::new([(app().app, &Route::default())], true), vec![app()], &["127.0.0.1/32"]);
        let parent = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
        let answer = world
            .raw(&format!(
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\ntraceparent: {parent}\r\ntracestate: a=1\r\n\r\n"
            ))
            .await;
        let spans = collector.spans(&world).await;
        assert_eq!(spans.len(), count, "{spans:#?}");
        assert!(answer.contains("tracestate: a=1\n"), "{answer}");
        match spans.first() {
            None => assert!(answer.contains(&parent), "as it came: {answer}"),
            Some(span) => {
                assert_eq!(hex(&span.trace_id), "0af7651916cd43dd8448eb211c80319c");
                assert_eq!(hex(&span.parent_span_id), "b7ad6b7169203331");
                assert!(answer.contains(&hex(&span.span_id)), "{answer}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_that_a_collector_does_not_take_are_counted() {
    let collector = Collector::start(StatusCode::BAD_REQUEST, 1).await;
    let workers = workers(1).await;
    let world = collector.world(route(Affinity::Cookie, routes(&workers))).await;
    for _ in 0..3 {
        assert_eq!(world.get("").await.status(), 200);
    }
    assert_eq!(collector.spans(&world).await.len(), 3, "it has seen them");
    assert_eq!(world.count(Counter::SpansDropped), 3);
}
