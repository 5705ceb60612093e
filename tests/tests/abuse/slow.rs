//! Clients that take their time or too much: they cost a connection each, and nobody else notices.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use homing_tests::frames::Client;
use homing_tests::instance::{Homing, wait_for};
use homing_tests::raw::{Answer, Worker, connect, exchange, read_to_end, requests, statuses};

use crate::row::NEXT;
use crate::{frames, homing};

/// The abuse, not a wait: this far apart are the bytes of a slow client.
const SLOWLY: Duration = Duration::from_millis(500);

fn assert_served(listen: SocketAddr) {
    let answer = exchange(listen, NEXT.as_bytes());
    assert_eq!(statuses(&answer), [200], "{answer}");
}

#[test]
fn a_head_that_comes_byte_by_byte_is_cut_while_others_are_served() {
    let worker = Worker::start();
    let (_homing, listen) = homing(worker.address);
    let mut slow = connect(listen);
    slow.set_read_timeout(Some(SLOWLY)).expect("a timeout");
    slow.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\nX: ").expect("nobody has refused yet");
    wait_for("the slow client is cut off", || {
        assert_served(listen);
        let _ = slow.write_all(b"x");
        // Waits for as long as a slow client does.
        match slow.read(&mut [0; 1024]) {
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => None,
            Ok(1..) => None,
            Ok(0) | Err(_) => Some(()),
        }
    });
    let seen = worker.take().concat();
    assert!(!String::from_utf8_lossy(&seen).contains("/x "), "the worker was not troubled with it");
}

#[test]
fn five_hundred_clients_that_say_nothing_keep_nobody_waiting_and_are_sent_away() {
    let worker = Worker::start();
    let (homing, listen) = homing(worker.address);
    let silent: Vec<_> = (0..500).map(|_| connect(listen)).collect();
    homing.wait_until("all are connected", |status| status["counters"]["http_connections"].as_u64() >= Some(500));
    for _ in 0..20 {
        assert_served(listen);
    }
    for mut client in silent {
        assert_eq!(read_to_end(&mut client), "", "closed without a word");
    }
    assert_served(listen);
}

/// Kilobytes of a process that are its own.
fn memory(homing: &Homing) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", homing.pid())).expect("homing runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Clients at once, and what each sends or is sent without anybody taking it.
const CLIENTS: usize = 40;
const BODY: u64 = 256 * 1024 * 1024;
/// homing's own buffers of a client who takes nothing, each of `BUFFER_BYTES_MAX`, 64 KB: what is read of the sender next,
/// the piece that waits between its connection and the other, the pieces that wait to be written there with the one that
/// went beyond (two), and what the silent side's connection reads into.
const MEMORY_PER_CLIENT_KB: u64 = 5 * 64;

/// Writes until nothing has been taken for a while, or until the end; how much.
fn push(stream: &mut TcpStream) -> u64 {
    stream.set_write_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    let mut sent = 0;
    while sent < BODY {
        match stream.write(&[b'x'; 64 * 1024]) {
            Ok(written @ 1..) => sent += written as u64,
            _ => break,
        }
    }
    sent
}

#[test]
fn answers_that_nobody_reads_stay_with_the_worker() {
    unread_answers(homing, |listen| {
        let mut client = connect(listen);
        client.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
        client
    });
}

#[test]
fn answers_on_streams_whose_window_is_shut_stay_with_the_worker() {
    unread_answers(frames::homing, |listen| {
        let mut client = Client::connect(listen);
        client.send(&frames::get(&[]));
        client
    });
}

fn unread_answers<C>(homing: impl Fn(SocketAddr) -> (Homing, SocketAddr), ask: impl Fn(SocketAddr) -> C) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (homing, listen) = homing(listener.local_addr().expect("bound"));
    let (stalled, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    let before = memory(&homing);
    let (count, largest) = (Arc::clone(&stalled), Arc::clone(&most));
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let (count, largest) = (Arc::clone(&count), Arc::clone(&largest));
            std::thread::spawn(move || {
                // Who asks nothing only looks whether somebody listens.
                if stream.read(&mut [0; 4096]).unwrap_or(0) > 0 {
                    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n");
                    largest.fetch_max(push(&mut stream), Ordering::SeqCst);
                    count.fetch_add(1, Ordering::SeqCst);
                    // Until homing closes it.
                    let _ = stream.read(&mut [0; 1]);
                    count.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    let clients: Vec<_> = (0..CLIENTS).map(|_| ask(listen)).collect();
    wait_for("nobody takes any more", || (stalled.load(Ordering::SeqCst) == CLIENTS).then_some(()));
    let grown = memory(&homing).saturating_sub(before);
    println!(
        "{grown} KB for {CLIENTS} answers of which the workers got rid of {} bytes at most",
        most.load(Ordering::SeqCst)
    );
    assert!(most.load(Ordering::SeqCst) < BODY, "the worker is held back");
    assert!(grown < CLIENTS as u64 * MEMORY_PER_CLIENT_KB, "{grown} KB for {CLIENTS} clients");
    drop(clients);
    wait_for("connections to the worker end with the clients'", || (stalled.load(Ordering::SeqCst) == 0).then_some(()));
}

#[test]
fn uploads_that_the_worker_does_not_read_stay_with_their_clients() {
    unread_uploads(homing, MEMORY_PER_CLIENT_KB, |listen| {
        let mut client = connect(listen);
        write!(client, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY}\r\n\r\n").expect("sent");
        (push(&mut client), client)
    });
}

#[test]
fn uploads_on_streams_that_the_worker_does_not_read_stay_with_their_clients() {
    unread_uploads(frames::homing, MEMORY_PER_CLIENT_KB + STREAM_WINDOW_KB, |listen| {
        let mut client = Client::connect(listen).patient_for(Duration::from_secs(1));
        client.send(&frames::post(&[]));
        (client.push(1, BODY), client)
    });
}

/// What a stream's client may send before anybody has taken it.
const STREAM_WINDOW_KB: u64 = 256;

fn unread_uploads<C: Send>(
    homing: impl Fn(SocketAddr) -> (Homing, SocketAddr),
    memory_max_kb: u64,
    send: impl Fn(SocketAddr) -> (u64, C) + Sync,
) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (homing, listen) = homing(listener.local_addr().expect("bound"));
    let before = memory(&homing);
    let stalled: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| send(listen))).collect();
        clients.into_iter().map(|client| client.join().expect("it has stalled")).collect()
    });
    let grown = memory(&homing).saturating_sub(before);
    let most = stalled.iter().map(|(sent, _)| *sent).max().unwrap_or_default();
    println!("{grown} KB for {CLIENTS} uploads of which the clients got rid of {most} bytes at most");
    assert!(most > 0 && most < BODY, "the client is held back");
    assert!(grown < CLIENTS as u64 * memory_max_kb, "{grown} KB for {CLIENTS} clients");
    drop(listener);
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_upload_ends_the_workers_connection() {
    let worker = Worker::start();
    let (_homing, listen) = homing(worker.address);
    worker.take();
    for body in ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        let mut client = connect(listen);
        write!(client, "POST /x HTTP/1.1\r\nHost: a\r\n{body}").expect("sent");
        wait_for("the worker gets half of it", || (worker.open() > 0).then_some(()));
        drop(client);
        assert_served(listen);
        let seen = worker.take();
        let all: Vec<_> = seen.iter().map(|bytes| requests(bytes).expect("requests")).collect();
        assert!(all.iter().all(|requests| requests.len() == 1), "each on a connection of its own: {all:#?}");
        assert!(all.iter().flatten().any(|request| request.target() == "/x" && !request.is_complete), "{all:#?}");
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_of_an_answer_ends_the_workers_connection() {
    let worker = Worker::start();
    let (_homing, listen) = homing(worker.address);
    worker.says(Answer { bytes: b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec(), keeps_open: true });
    let mut client = connect(listen);
    client.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
    let mut seen = Vec::new();
    while !seen.ends_with(b"half") {
        let mut byte = [0];
        client.read_exact(&mut byte).expect("half an answer");
        seen.push(byte[0]);
    }
    let connections = worker.connections();
    drop(client);
    wait_for("the worker is told", || (worker.open() == 0).then_some(()));
    assert_served(listen);
    assert!(worker.connections() > connections, "on another connection");
}
