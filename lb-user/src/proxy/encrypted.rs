//! TLS as clients of the HTTP path see it.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use super::Counter;
use super::testing::*;
use crate::config::{Affinity, Host, Route};
use crate::routing::AppRoute;
use crate::tls::Tickets;
use crate::tls::testing::{Pair, issue};

/// Trusts these and nobody else.
fn trusting(pairs: &[&Pair], protocols: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for pair in pairs {
        roots.add(pair.der.clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = versions.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Arc::new(config)
}

async fn connect(world: &World, config: &Arc<ClientConfig>, name: &str) -> TlsStream<TcpStream> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TlsConnector::from(Arc::clone(config)).connect(name, world.connect().await);
    soon("a handshake", stream).await.unwrap()
}

async fn ask(stream: &mut TlsStream<TcpStream>, request: &str) -> Answer {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    while !answer.ends_with("body \"\"\n") {
        answer.push(char::from(soon("an answer", stream.read_u8()).await.unwrap()));
    }
    Answer(answer)
}

fn presented(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// One app behind this pair.
async fn encrypted(affinity: Affinity, pair: &Pair) -> World {
    let workers = workers(1).await;
    let world = world(route(affinity, routes(&workers))).await;
    world.encrypt(&[Route::default()], vec![route(affinity, routes(&workers))], &[pair], &Tickets::new().unwrap());
    world
}

#[tokio::test]
async fn the_worker_is_told_of_tls_and_the_cookie_is_secure() {
    let pair = issue(&["a.test"]);
    let world = encrypted(Affinity::Cookie, &pair).await;
    let mut stream = connect(&world, &trusting(&[&pair], &["spdy/1", "http/1.1"]), "a.test").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let answer = ask(&mut stream, GET).await;
    assert!(answer.0.contains("x-forwarded-proto: https\n"), "{}", answer.0);
    assert!(answer.0.contains("forwarded: for=127.0.0.1;proto=https;host=\"a.test\"\n"), "{}", answer.0);
    assert!(answer.header("set-cookie").unwrap().contains("; Secure"), "{}", answer.0);
    assert_eq!(world.count(Counter::TlsHandshakes), 1);
}

#[tokio::test]
async fn each_app_shows_its_own_certificate_and_the_first_is_for_the_rest() {
    let pairs = [issue(&["a.test", "c.test"]), issue(&["*.b.test"])];
    let both = [&pairs[0], &pairs[1]];
    let host = |name: Host| Route { hosts: vec![name], ..Route::default() };
    let routes = [host(Host::Exact("a.test".into())), host(Host::Below("b.test".into()))];
    let mut apps = Vec::new();
    for number in 0..2 {
        apps.push(AppRoute { app: number, ..route(Affinity::Ip, vec![worker(number).await.route]) });
    }
    let world = world(route(Affinity::Ip, vec![])).await;
    world.encrypt(&routes, apps, &both, &Tickets::new().unwrap());
    let trust = trusting(&both, &[]);
    for (name, at, worker) in [("a.test", 0, 0), ("x.b.test", 1, 1), ("c.test", 0, 1)] {
        let mut stream = connect(&world, &trust, name).await;
        assert_eq!(presented(&stream), pairs[at].der, "{name}");
        let host = if worker == 0 { "a.test" } else { "x.b.test" };
        let answer = ask(&mut stream, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(answer.worker(), worker, "the request says whose it is, whatever the certificate");
    }
    let refused = TlsConnector::from(trust).connect("elsewhere.test".try_into().unwrap(), world.connect().await).await;
    assert!(refused.unwrap_err().to_string().contains("not valid for name"));
    until("the refusal to be counted", || world.count(Counter::TlsFailed) == 1).await;
}

#[tokio::test]
async fn without_tls_there_is_a_word_of_help() {
    let pair = issue(&["a.test"]);
    let world = encrypted(Affinity::Ip, &pair).await;
    let answer = world.get("").await;
    assert_eq!((answer.status(), answer.0.contains("use https://")), (400, true), "{}", answer.0);
    assert_eq!((world.count(Counter::TlsPlain), world.count(Counter::Requests)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_does_not_come_is_not_waited_for_long() {
    let pair = issue(&["a.test"]);
    let world = encrypted(Affinity::Ip, &pair).await;
    assert_eq!(world.raw("").await, "");
    assert_eq!(world.count(Counter::TlsFailed), 1);
}

/// As many as there is room for, and nobody else came in for ten seconds.
#[tokio::test]
async fn connections_that_say_nothing_take_no_room_from_handshakes() {
    let pair = issue(&["a.test"]);
    let world = encrypted(Affinity::Ip, &pair).await;
    let silent = [world.connect().await, world.connect().await];
    let mut begun = world.connect().await;
    begun.write_all(&[22]).await.unwrap();
    connect(&world, &trusting(&[&pair], &[]), "a.test").await;
    until("who has begun to be seen", || world.proxy.0.handshakes.under_way() == 1).await;
    assert_eq!(world.count(Counter::Connections), silent.len() as u64 + 2);
}

#[tokio::test]
async fn clients_resume_their_session_also_after_the_certificate_was_renewed() {
    let (pair, renewed) = (issue(&["a.test"]), issue(&["a.test"]));
    let workers = workers(1).await;
    let app = || vec![route(Affinity::Ip, routes(&workers))];
    let world = world(route(Affinity::Ip, vec![])).await;
    let tickets = Tickets::new().unwrap();
    world.encrypt(&[Route::default()], app(), &[&pair], &tickets);
    let trust = trusting(&[&pair, &renewed], &[]);
    let mut open = connect(&world, &trust, "a.test").await;
    assert_eq!(open.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    assert_eq!(ask(&mut open, GET).await.worker(), 0);
    world.encrypt(&[Route::default()], app(), &[&renewed], &tickets);
    let mut again = connect(&world, &trust, "a.test").await;
    assert_eq!(ask(&mut again, GET).await.worker(), 0);
    assert_eq!(again.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    let stranger = connect(&world, &trusting(&[&renewed], &[]), "a.test").await;
    assert_eq!(presented(&stranger), renewed.der);
    assert_eq!(ask(&mut open, GET).await.worker(), 0, "what is open goes on");
}

#[tokio::test]
async fn a_websocket_is_tunnelled_out_of_tls() {
    let pair = issue(&["a.test"]);
    let world = encrypted(Affinity::Cookie, &pair).await;
    let stream = connect(&world, &trusting(&[&pair], &[]), "a.test").await;
    let (mut socket, response) = client_async("wss://a.test/websocket/", stream).await.unwrap();
    assert!(response.headers()["set-cookie"].to_str().unwrap().contains("; Secure"));
    for size in [0, 125, 70_000, 1_000_000] {
        let message = Message::binary(vec![7; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(soon("the echo", socket.next()).await.unwrap().unwrap(), message);
    }
    assert_eq!(world.proxy.open_tunnels(), 1);
    socket.close(None).await.unwrap();
    while soon("the close", socket.next()).await.is_some_and(|message| message.is_ok()) {}
    drop(socket);
    until("the tunnel to be forgotten", || world.proxy.open_tunnels() == 0).await;
}

#[tokio::test]
async fn a_connection_from_before_the_door_had_tls_is_sent_away() {
    let pair = issue(&["a.test"]);
    let workers = workers(1).await;
    let world = world(route(Affinity::Ip, routes(&workers))).await;
    let mut open = world.connect().await;
    open.write_all(GET.as_bytes()).await.unwrap();
    soon("an answer", open.readable()).await.unwrap();
    world.encrypt(&[Route::default()], vec![route(Affinity::Ip, routes(&workers))], &[&pair], &Tickets::new().unwrap());
    open.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answers = String::new();
    soon("two answers", open.read_to_string(&mut answers)).await.unwrap();
    assert!(answers.starts_with("HTTP/1.1 200") && answers.contains("HTTP/1.1 400"), "{answers}");
}
