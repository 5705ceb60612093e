//! Remote hosts that packets reach in IP and in GUE, over both IP versions; a program on the host takes them out, as
//! kernels do that have the tunnels. Needs root.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::process::Child;

use homing_tests::hosts::{
    L2, PORT, Plan, Site, Way, assert_arrived, assert_kept, datagram, datagrams, listen_udp, receipt, spread,
    take_datagrams,
};
use homing_tests::instance::{wait_for, workers};
use homing_tests::network::{Namespace, SERVICE_V4, SERVICE_V6};
use homing_tests::session::Session;

const V4: IpAddr = IpAddr::V4(SERVICE_V4);
const V6: IpAddr = IpAddr::V6(SERVICE_V6);
const IPIP_OVER_V4: Way = Way { forward: "ipip", over_v4: true };
const IPIP_OVER_V6: Way = Way { forward: "ipip", over_v4: false };
const GUE_OVER_V4: Way = Way { forward: "gue", over_v4: true };
const GUE_OVER_V6: Way = Way { forward: "gue", over_v4: false };

/// Through changes of the ring, with open connections and new ones.
fn clients_keep_their_host(service: IpAddr, way: Way) {
    let site = Site::start_as(&Plan { service, ways: &[way; 2], ..Plan::default() });
    let mut residents = site.open(1..=8);
    for (number, resident) in (1..).zip(&mut residents) {
        let seen = resident.hello.peer.ip().to_canonical();
        assert_eq!(seen, site.client(number).from, "the host sees the client itself");
        assert_kept(resident);
    }
    for (command, state) in [("drain", "draining"), ("undrain", "ready"), ("drain", "draining")] {
        assert!(site.homing.ask(&[command, "demo/0"]).status.success());
        site.homing.wait_until("the ring has changed", |status| workers(status, 0)[0]["state"] == state);
        residents.iter_mut().for_each(assert_kept);
    }
    let mut newcomers = site.open(9..=16);
    assert_eq!(spread(&newcomers), [0, 8], "new clients go to the other");
    residents.iter_mut().chain(&mut newcomers).for_each(assert_kept);
    let counters = site.homing.status()["counters"].clone();
    assert_eq!(counters["http_requests"], 0, "no request passed through homing");
    assert!(counters[format!("xdp_forwarded_{}", way.forward)].as_u64() > Some(300), "{counters:#}");
}

#[test]
fn clients_keep_their_host_over_ipip_4in4() {
    clients_keep_their_host(V4, IPIP_OVER_V4);
}

#[test]
fn clients_keep_their_host_over_ipip_6in4() {
    clients_keep_their_host(V6, IPIP_OVER_V4);
}

#[test]
fn clients_keep_their_host_over_ipip_4in6() {
    clients_keep_their_host(V4, IPIP_OVER_V6);
}

#[test]
fn clients_keep_their_host_over_ipip_6in6() {
    clients_keep_their_host(V6, IPIP_OVER_V6);
}

#[test]
fn clients_keep_their_host_over_gue_4in4() {
    clients_keep_their_host(V4, GUE_OVER_V4);
}

#[test]
fn clients_keep_their_host_over_gue_6in4() {
    clients_keep_their_host(V6, GUE_OVER_V4);
}

#[test]
fn clients_keep_their_host_over_gue_4in6() {
    clients_keep_their_host(V4, GUE_OVER_V6);
}

#[test]
fn clients_keep_their_host_over_gue_6in6() {
    clients_keep_their_host(V6, GUE_OVER_V6);
}

#[test]
fn hosts_by_link_address_in_ip_and_in_gue_serve_behind_one_address() {
    let site = Site::start_as(&Plan { ways: &[L2, IPIP_OVER_V6, GUE_OVER_V4], ..Plan::default() });
    let mut sessions: Vec<Session<'_>> = site.open(1..=16);
    let shares: [usize; 3] = spread(&sessions);
    assert!(shares.iter().all(|&share| share > 0) && shares.iter().sum::<usize>() == 16, "{shares:?}");
    for host in ["demo/0", "demo/1", "demo/2"] {
        assert!(site.homing.ask(&["drain", host]).status.success());
        sessions.iter_mut().for_each(assert_kept);
        assert!(site.homing.ask(&["undrain", host]).status.success());
        sessions.iter_mut().for_each(assert_kept);
    }
    let counters = site.homing.status()["counters"].clone();
    assert_eq!(counters["http_requests"], 0, "no request passed through homing");
    for way in ["l2", "ipip", "gue"] {
        assert!(counters[format!("xdp_forwarded_{way}")].as_u64() > Some(0), "{way}: {counters:#}");
    }
}

/// A host's worker that takes uploads and says what arrived, for as long as the test's process lives.
fn take_uploads(namespace: &Namespace, number: u8) -> Option<Child> {
    let listen = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).expect("the host's port is free");
    let listener = namespace.enter(listen);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || take_upload(stream, number));
        }
    });
    None
}

/// One request: its head, and as much of a body as that announces.
fn take_upload(stream: TcpStream, number: u8) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut request = Vec::new();
    let mut body_len = 0;
    while !request.ends_with(b"\r\n\r\n") {
        let begin = request.len();
        if stream.read_until(b'\n', &mut request)? == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&request[begin..]).to_lowercase();
        body_len = line.strip_prefix("content-length:").map_or(body_len, |len| len.trim().parse().expect("a length"));
    }
    let head_len = request.len();
    request.resize(head_len + body_len, 0);
    stream.read_exact(&mut request[head_len..])?;
    let body = receipt(&format!("host {number}"), &request);
    write!(stream.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// What the clients' machine knows of the largest packet on the way to the service; `None` while nobody has told it.
fn path_mtu(site: &Site) -> Option<usize> {
    let client = site.client(1);
    let (to, from) = (client.target.ip().to_string(), client.from.to_string());
    let route = site.lan.clients.output(&["ip", "route", "get", &to, "from", &from]);
    let (_, rest) = route.split_once(" mtu ")?;
    Some(rest.split_whitespace().next()?.parse().expect("a number"))
}

/// The packets of the client's machine are as large as its own cable takes, until homing tells it what the tunnel takes.
fn what_is_too_big_for_the_tunnel_arrives_whole(service: IpAddr, way: Way, mtu: usize) {
    let headers = format!("GET / HTTP/1.1\r\nHost: demo\r\nCookie: {}\r\n\r\n", "c".repeat(6_000)).into_bytes();
    let upload: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
    let head = format!("POST / HTTP/1.1\r\nHost: demo\r\nContent-Length: {}\r\n\r\n", upload.len());
    for request in [headers, [head.as_bytes(), &upload].concat()] {
        // A site of its own: what is too big is told once.
        let site = Site::start_as(&Plan { service, ways: &[way], worker: take_uploads, ..Plan::default() });
        assert_eq!(path_mtu(&site), None);
        let mut stream = site.client(1).connect().expect("the service can be reached");
        stream.write_all(&request).expect("the service takes it");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the whole request has arrived");
        let (_, body) = answer.split_once("\r\n\r\n").expect("an answer");
        assert_eq!(body, receipt("host 0", &request));
        assert_eq!(path_mtu(&site), Some(mtu), "the client's machine was told");
        let counters = site.homing.status()["counters"].clone();
        assert!(counters["xdp_too_big"].as_u64() > Some(0), "{counters:#}");
        assert_eq!(counters["http_requests"], 0, "it did not pass through homing");
    }
}

#[test]
fn an_upload_and_large_headers_arrive_whole_over_ipip_4in4() {
    what_is_too_big_for_the_tunnel_arrives_whole(V4, IPIP_OVER_V4, 1_480);
}

#[test]
fn an_upload_and_large_headers_arrive_whole_over_ipip_6in6() {
    what_is_too_big_for_the_tunnel_arrives_whole(V6, IPIP_OVER_V6, 1_460);
}

#[test]
fn an_upload_and_large_headers_arrive_whole_over_gue_4in6() {
    what_is_too_big_for_the_tunnel_arrives_whole(V4, GUE_OVER_V6, 1_448);
}

#[test]
fn an_upload_and_large_headers_arrive_whole_over_gue_6in4() {
    what_is_too_big_for_the_tunnel_arrives_whole(V6, GUE_OVER_V4, 1_468);
}

/// Of a datagram that does not fit nothing is kept for later; the next is cut to what does.
fn datagrams_arrive_whole_once_the_client_was_told(service: IpAddr, way: Way) {
    let site = Site::start_as(&Plan { service, ways: &[way], more: &listen_udp(service), ..Plan::default() });
    take_datagrams(&site);
    let session = site.client(1).open();
    let socket = datagrams(site.client(1));
    let large = datagram(7, 4_000);
    wait_for("the client's machine was told", || {
        // An error on the socket is what tells it.
        let _ = socket.send(&large);
        path_mtu(&site)
    });
    // What was answered or refused meanwhile is none of the following's.
    let socket = datagrams(site.client(1));
    for len in [4_000, 20_000, 3] {
        let sent = datagram(len as u8, len);
        socket.send(&sent).expect("sent");
        assert_arrived(&socket, &session, &sent);
    }
}

#[test]
fn datagrams_too_big_for_ipip_arrive_whole_once_the_client_was_told() {
    datagrams_arrive_whole_once_the_client_was_told(V4, IPIP_OVER_V4);
}

#[test]
fn datagrams_too_big_for_gue_arrive_whole_once_the_client_was_told_over_ipv6() {
    datagrams_arrive_whole_once_the_client_was_told(V6, GUE_OVER_V6);
}
