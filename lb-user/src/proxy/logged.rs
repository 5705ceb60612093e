//! What the access log says of requests and tunnels.

use std::path::{Path, PathBuf};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::tungstenite::Message;

use super::testing::*;
use crate::access::{Format, Settings};
use crate::config::{Affinity, Route};
use crate::routing::AppRoute;

async fn logged(app: AppRoute, query: bool) -> (World, tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let settings = Settings { path: path.clone(), format: Format::Json, query };
    (world_told(&[Route::default()], vec![app], Some(&settings), None).await, dir, path)
}

/// All lines, once there are so many.
async fn lines(path: &Path, count: usize) -> Vec<Value> {
    let read = || std::fs::read_to_string(path).unwrap();
    until("lines in the access log", || read().lines().count() >= count).await;
    read().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_request_is_told_with_its_worker_and_the_rule_that_chose_it() {
    let workers = workers(1).await;
    let (world, _dir, path) = logged(route(Affinity::Cookie, routes(&workers)), false).await;
    let first =
        world.raw("GET /a?token=secret HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUser-Agent: test\r\n\r\n").await;
    let cookie = Answer(first.clone()).cookie().unwrap();
    world.get(&cookie).await;
    let lines = lines(&path, 2).await;
    let line = &lines[0];
    assert_eq!((&line["target"], &line["status"], &line["user_agent"]), (&"/a".into(), &200.into(), &"test".into()));
    assert_eq!((&line["worker"], &line["rule"]), (&"sales/0".into(), &"cookie_new".into()));
    assert_eq!((&line["client"], &line["protocol"]), (&"127.0.0.1".into(), &"HTTP/1.1".into()));
    let (_, body) = first.split_once("\r\n\r\n").unwrap();
    assert_eq!(line["bytes"], body.len());
    let id = line["request_id"].as_str().unwrap();
    assert!(body.contains(&format!("x-request-id: {id}\n")), "the worker knows it by the same name: {body}");
    assert_eq!(lines[1]["rule"], "cookie_kept");
}

/// It looked like a head that could not be read.
#[tokio::test]
async fn a_connect_is_told_with_the_machine_that_it_names() {
    let (world, _dir, path) = logged(route(Affinity::Ip, vec![]), false).await;
    let answer = world.raw("CONNECT mail.test:25 HTTP/1.1\r\nHost: mail.test:25\r\n\r\n").await;
    let line = lines(&path, 1).await.remove(0);
    assert_eq!((&line["method"], &line["target"]), (&"CONNECT".into(), &"mail.test:25".into()));
    assert_eq!(Some(u64::from(Answer(answer).status())), line["status"].as_u64());
}

#[tokio::test]
async fn refusals_and_waits_are_told() {
    let (world, _dir, path) = logged(AppRoute { failed: Some("x".into()), ..route(Affinity::Ip, vec![]) }, true).await;
    let answer = world.raw("GET /?q=1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let line = lines(&path, 1).await.remove(0);
    assert_eq!((&line["status"], &line["refused"], &line["worker"]), (&503.into(), &"failed".into(), &Value::Null));
    assert_eq!((&line["target"], &line["app"]), (&"/?q=1".into(), &"sales".into()));
    assert_eq!(Answer(answer).header("x-request-id"), line["request_id"].as_str());

    let workers = workers(1).await;
    let (world, _dir, path) = logged(route(Affinity::Cookie, vec![]), false).await;
    let (answer, ()) = tokio::join!(world.get(""), async {
        world.notice().await;
        world.publish(route(Affinity::Cookie, routes(&workers)));
    });
    assert_eq!(answer.status(), 200);
    let line = lines(&path, 1).await.remove(0);
    assert!(
        line["held_ms"].as_f64().unwrap() > 0.0 && line["duration_ms"].as_f64() >= line["held_ms"].as_f64(),
        "{line}"
    );
}

#[tokio::test]
async fn a_client_that_went_away_before_its_answer_is_told_as_such() {
    let (world, _dir, path) = logged(route(Affinity::Cookie, vec![]), false).await;
    let mut client = world.connect().await;
    client.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    world.notice().await;
    drop(client);
    let line = lines(&path, 1).await.remove(0);
    assert_eq!((&line["status"], &line["refused"], &line["app"]), (&499.into(), &"abandoned".into(), &"sales".into()));
}

#[tokio::test]
async fn a_websocket_is_told_at_its_end_with_what_went_to_the_client() {
    let workers = workers(1).await;
    let (world, _dir, path) = logged(route(Affinity::Cookie, routes(&workers)), false).await;
    let url = format!("ws://{}/ws?id=1", world.address);
    let (mut socket, _) = tokio_tungstenite::client_async(url, world.connect().await).await.unwrap();
    socket.send(Message::text("x".repeat(100))).await.unwrap();
    assert_eq!(soon("the echo", socket.next()).await.unwrap().unwrap().len(), 100);
    assert_eq!(std::fs::read(&path).unwrap(), b"", "not before its end");
    drop(socket);
    let line = lines(&path, 1).await.remove(0);
    assert_eq!((&line["status"], &line["target"], &line["rule"]), (&101.into(), &"/ws".into(), &"cookie_new".into()));
    // Two bytes of a frame's head before the text of the echo.
    assert_eq!((&line["bytes"], &line["app"]), (&102.into(), &"sales".into()));
}

/// hyper answers them by itself, and the log said nothing.
#[tokio::test]
async fn what_is_no_request_is_told_with_what_was_answered() {
    let (world, _dir, path) = logged(route(Affinity::Cookie, vec![]), false).await;
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(40 * 1024));
    for (number, request) in (1..).zip(["no request\r\n\r\n", &long]) {
        let answer = world.raw(request).await;
        let line = lines(&path, number).await.remove(number - 1);
        assert_eq!(line["status"], Answer(answer).status(), "{line}");
        assert_eq!((&line["target"], &line["client"]), (&Value::Null, &"127.0.0.1".into()));
    }
}
