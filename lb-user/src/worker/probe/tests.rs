//! Scenarios of `probe`.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const BY_CONNECT: Proof = Proof::Connection;
/// Longer than any answer takes here.
const ENOUGH: Duration = Duration::from_secs(20);

fn by_get(path: &str) -> Proof {
    Proof::Get(path.to_owned())
}

/// Answers one request after another with these texts, then closes; gives the heads of the requests seen.
async fn server(answers: &'static [&'static str]) -> (Address, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let address = Address::from(listener.local_addr().expect("bound"));
    let task = tokio::spawn(async move {
        let mut heads = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.expect("a probe comes");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a whole head comes"));
            }
            heads.push(String::from_utf8(head).expect("text"));
            stream.write_all(answer.as_bytes()).await.expect("sent");
        }
        heads
    });
    (address, task)
}

#[test]
fn probes_come_fast_at_first_and_every_half_second_later() {
    let delays: Vec<Duration> = probe_delays().take(200).collect();
    assert!(delays.is_sorted(), "ever longer");
    assert_eq!((delays[0].as_millis(), delays[199].as_millis()), (10, 500));
    let within = |limit: Duration| {
        delays
            .iter()
            .scan(Duration::ZERO, |at, delay| {
                *at += *delay;
                Some((*at, *delay))
            })
            .filter(|(at, _)| *at <= limit)
            .map(|(_, delay)| delay)
            .max()
    };
    assert_eq!(
        within(Duration::from_secs(2)),
        Some(Duration::from_millis(40)),
        "a request is held no longer than for that"
    );
}

#[tokio::test]
async fn without_a_path_an_accepted_connection_is_enough() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let address = Address::from(listener.local_addr().expect("bound"));
    ready(&address, &BY_CONNECT, ENOUGH).await.expect("it accepts");
}

#[tokio::test]
async fn a_get_is_asked_until_the_answer_is_2xx_or_3xx() {
    let (address, served) = server(&[
        "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",
        "",
        "HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n",
    ])
    .await;
    ready(&address, &by_get("/health?x=1"), ENOUGH).await.expect("the third answer is good");
    let heads = served.await.expect("served");
    assert_eq!(heads.len(), 3);
    assert!(heads[0].starts_with("GET /health?x=1 HTTP/1.1\r\n"), "{}", heads[0]);
    assert!(heads[0].contains(&format!("host: {address}\r\n")), "{}", heads[0]);
}

#[tokio::test]
async fn an_answer_without_length_counts_as_soon_as_its_head_is_there() {
    let (address, _served) = server(&["HTTP/1.0 200 OK\r\n\r\nhello"]).await;
    probe(&address, &by_get("/"), ENOUGH).await.expect("200");
}

#[tokio::test]
async fn when_time_is_up_the_last_failure_is_told() {
    let free = crate::worker::port::pick(&std::collections::BTreeSet::new()).expect("a port is free");
    let address = Address::from(free);
    let expired = ready(&address, &BY_CONNECT, Duration::from_millis(120)).await.expect_err("nobody is there");
    assert_eq!(
        expired.to_string(),
        format!("not ready within 0.12 s: nothing accepts connections on {address}: Connection refused (os error 111)")
    );
}

#[tokio::test]
async fn a_worker_that_accepts_and_says_nothing_is_given_up() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let address = Address::from(listener.local_addr().expect("bound"));
    let error = probe(&address, &by_get("/"), Duration::from_millis(50)).await.expect_err("no answer");
    assert!(matches!(error, NotReady::Slow { .. }), "{error}");
}

#[tokio::test]
async fn a_bad_answer_is_told_apart_from_none() {
    let (address, _served) =
        server(&["HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "SSH-2.0-x\r\n\r\n"]).await;
    let error = probe(&address, &by_get("/x"), ENOUGH).await.expect_err("404 is not ready");
    assert_eq!(error.to_string(), format!("GET /x on {address} was answered 404 Not Found, not 2xx or 3xx"));
    let error = probe(&address, &by_get("/x"), ENOUGH).await.expect_err("not HTTP");
    assert!(matches!(error, NotReady::Http { .. }), "{error}");
}

#[tokio::test]
async fn a_connection_that_the_kernel_took_for_nobody_is_no_proof_for_a_passed_socket() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let address = Address::from(listener.local_addr().expect("bound"));
    probe(&address, &Proof::Connection, ENOUGH).await.expect("the kernel takes it");
    let error = probe(&address, &Proof::Closing, Duration::from_millis(50)).await.expect_err("nobody has it");
    assert!(matches!(error, NotReady::Slow { .. }), "{error}");
    let worker = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let _ = stream.read(&mut [0; 16]).await;
        }
    });
    probe(&address, &Proof::Closing, ENOUGH).await.expect("the worker took it and let it go");
    worker.abort();
}

#[tokio::test]
async fn a_connection_that_dies_with_the_worker_is_no_proof_for_a_passed_socket() {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = Address::from(listener.local_addr().expect("bound"));
    let asked = address.clone();
    let probe = tokio::spawn(async move { probe(&asked, &Proof::Closing, ENOUGH).await });
    // Its connection waits in the queue, told to be over.
    tokio::task::spawn_blocking(move || {
        let mut waiting = [rustix::event::PollFd::new(&listener, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut waiting, None).expect("asked");
    })
    .await
    .expect("no panic; the socket is closed");
    let error = probe.await.expect("no panic").expect_err("nobody ever had it");
    // It may die before it was told to be over, too.
    assert!(matches!(error, NotReady::Closed { .. } | NotReady::Connect { .. }), "{error}");
}

#[tokio::test]
async fn a_get_goes_over_a_unix_socket_too() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("socket");
    let listener = tokio::net::UnixListener::bind(&path).expect("bound");
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a probe comes");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a whole head comes"));
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("sent");
        String::from_utf8(head).expect("text")
    });
    let address = Address::from(path.clone());
    probe(&address, &by_get("/health"), ENOUGH).await.expect("200");
    assert!(served.await.expect("served").contains("\r\nhost: localhost\r\n"));
    let error = probe(&address, &by_get("/health"), ENOUGH).await.expect_err("nobody has it open any more");
    let shown = path.display();
    assert_eq!(
        error.to_string(),
        format!("nothing accepts connections on unix:{shown}: Connection refused (os error 111)")
    );
}

#[test]
fn what_homing_itself_lacks_says_nothing_of_the_worker() {
    let met = |errno: rustix::io::Errno| NotReady::Connect {
        address: Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], 1))),
        source: errno.into(),
    };
    assert!(met(rustix::io::Errno::MFILE).is_own_want());
    assert!(!met(rustix::io::Errno::CONNREFUSED).is_own_want());
}
