//! Remote backends on a switch of their own, reached by link address, answering their clients directly. Needs root.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use homing_tests::hosts::{
    CLIENTS, Host, L2, PORT, Plan, Site, Way, assert_arrived, assert_kept, client, datagram, datagrams, entry,
    listen_udp, spread, take_datagrams,
};
use homing_tests::instance::{binary, wait_for, workers};
use homing_tests::network::{SERVICE_V4, SERVICE_V6, backend_v4, client_v4};
use socket2::{Domain, Protocol, Socket, Type};

#[test]
fn clients_keep_their_remote_backend_and_are_answered_directly() {
    let site = Site::start("", "");
    let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| site.client(number).open()).collect();
    for (number, session) in (1..).zip(&mut sessions) {
        assert_eq!(session.hello.peer.ip().to_canonical(), client_v4(number), "the host sees the client itself");
        assert!(!session.hello.forwarded);
        for _ in 0..5 {
            assert_kept(session);
        }
    }
    let [first, second] = spread(&sessions);
    assert!(first > 0 && second > 0 && first + second == usize::from(CLIENTS), "{first} and {second}");
    let status = site.homing.status();
    assert_eq!(status["counters"]["http_requests"], 0, "no request passed through homing");
    assert!(status["counters"]["xdp_forwarded_l2"].as_u64() > Some(500), "{status:#}");
    let trace = site.homing.trace("demo", &client_v4(1).to_string());
    assert_eq!(trace["path"], "kernel", "{trace:#}");
}

/// XDP asks for a socket of the connection with the kernel's own lookup, while the HTTP path may hold some.
#[test]
fn packets_that_xdp_forwards_are_not_counted_as_connections_without_a_socket() {
    let worker = format!(
        "command = [{:?}, \"demo-worker\", \"--port\", \"{{port}}\"]\n[app.workers]\nmin = 1\nmax = 1\n",
        binary()
    );
    let site = Site::start("", &worker);
    site.homing.wait_for_workers(0, 3);
    let mut sessions = site.open(1..=CLIENTS);
    sessions.iter_mut().for_each(assert_kept);
    let counters = site.homing.status()["counters"].clone();
    assert!(counters["xdp_forwarded_l2"].as_u64() > Some(100), "{counters:#}");
    assert_eq!(counters["lookup_no_socket"], 0, "{counters:#}");
    let here = sessions.iter().filter(|session| session.hello.worker == "demo/0").count();
    let delivered = ["lookup_ring", "lookup_bound"].map(|name| counters[name].as_u64().expect("a counter"));
    assert_eq!(
        delivered.iter().sum::<u64>(),
        2 * here as u64,
        "one for each session and one for its check: {counters:#}"
    );
}

#[test]
fn a_drain_of_a_remote_backend_keeps_its_clients_and_their_open_connections() {
    let site = Site::start("", "");
    let mut residents: Vec<_> = (1..=8).map(|number| site.client(number).open()).collect();
    assert!(site.homing.ask(&["drain", "demo/0"]).status.success());
    // Named for what went wrong elsewhere: a new connection of the same client must not pull its open one along.
    residents.iter_mut().for_each(assert_kept);
    let newcomers: Vec<_> = (9..=CLIENTS).map(|number| site.client(number).open()).collect();
    assert_eq!(spread(&newcomers), [0, 8], "new clients go to the other");
    residents.iter_mut().for_each(assert_kept);
    assert!(site.homing.ask(&["undrain", "demo/0"]).status.success());
    residents.iter_mut().for_each(assert_kept);
    for mut newcomer in newcomers {
        assert_kept(&mut newcomer);
    }
}

/// Katran's client-IP mode fails here: after a change of its ring a page asset takes the client's WebSocket along.
#[test]
fn the_katran_failure_a_ring_change_then_a_new_connection_and_the_old_websocket_lives() {
    let site = Site::start("", "");
    let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| site.client(number).open()).collect();
    for (command, state) in [("drain", "draining"), ("undrain", "ready"), ("drain", "draining")] {
        assert!(site.homing.ask(&[command, "demo/0"]).status.success());
        site.homing.wait_until("the ring has changed", |status| workers(status, 0)[0]["state"] == state);
        for session in &mut sessions {
            // The WebSocket has been silent since the change: nothing but the binding tells of it.
            let asset = session.check().expect("the service answers");
            assert_eq!(asset.status, 200, "the new connection reaches the session of {:?}", session.hello);
            assert!(session.is_alive(), "and the old WebSocket of {:?} lives", session.hello);
        }
    }
}

#[test]
fn weight_changed_bound_clients_and_open_connections_stay_and_new_clients_follow_the_new_shares() {
    let mut site = Site::start("", "");
    let Site { homing, lan, .. } = &mut site;
    let mut before: Vec<_> = (1..=4).map(|number| client(lan, SERVICE_V4.into(), number).open()).collect();
    homing.kill();
    let file = homing.dir().join("homing.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let second = format!("address = \"{}:{PORT}\", forward = \"l2\"", backend_v4(1));
    assert!(text.contains(&second), "{text}");
    std::fs::write(&file, text.replace(&second, &format!("{second}, weight = 100"))).expect("it is written");
    homing.start_again();
    homing.wait_until("both backends answer", |status| workers(status, 0).iter().all(|w| w["state"] == "ready"));
    before.iter_mut().for_each(assert_kept);
    let after: Vec<_> = (5..=CLIENTS).map(|number| client(lan, SERVICE_V4.into(), number).open()).collect();
    let [few, many] = spread(&after);
    assert!(few <= 2 && many >= 10, "a hundredth and the rest: {few} and {many}");
    before.iter_mut().for_each(assert_kept);
}

#[test]
fn host_added_bound_clients_and_open_connections_stay_and_new_clients_get_their_share() {
    const SAMPLE: u8 = 64;
    let mut site = Site::start_as(&Plan { configured: 1, ..Plan::default() });
    let Site { homing, lan, .. } = &mut site;
    let mut before: Vec<_> = (1..=8).map(|number| client(lan, SERVICE_V4.into(), number).open()).collect();
    assert_eq!(spread(&before), [8, 0], "there is but one host");
    homing.kill();
    let file = homing.dir().join("homing.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    assert!(text.contains(&entry(0, L2)), "{text}");
    std::fs::write(&file, text.replace(&entry(0, L2), &[entry(0, L2), entry(1, L2)].join(", ")))
        .expect("it is written");
    homing.start_again();
    homing.wait_for_workers(0, 2);
    before.iter_mut().for_each(assert_kept);
    let is_added = |number: u8| homing.trace("demo", &client_v4(number).to_string())["worker"] == "demo/1";
    let share = (100..100 + SAMPLE).filter(|&number| is_added(number)).count();
    assert!((8..=56).contains(&share), "half of the ring is the added host's: {share} of {SAMPLE}");
    let owned = (9..=CLIENTS).filter(|&number| is_added(number)).count();
    let after: Vec<_> = (9..=CLIENTS).map(|number| client(lan, SERVICE_V4.into(), number).open()).collect();
    assert_eq!(spread(&after), [8 - owned, owned], "new clients go where the ring has them");
    before.iter_mut().for_each(assert_kept);
}

#[test]
fn datagrams_of_a_client_go_where_its_connections_go() {
    let site = Site::start("", &listen_udp(SERVICE_V4.into()));
    take_datagrams(&site);
    for number in 1..=CLIENTS {
        let session = site.client(number).open();
        let socket = datagrams(site.client(number));
        for _ in 0..5 {
            socket.send(b"who").expect("sent");
            assert_arrived(&socket, &session, b"who");
        }
    }
}

/// Their fragments after the first name no port, and must go where it went.
fn large_datagrams_arrive_whole(service: IpAddr) {
    let ways = [Way { forward: "l2", over_v4: service.is_ipv4() }; 2];
    let site = Site::start_as(&Plan { service, ways: &ways, more: &listen_udp(service), ..Plan::default() });
    take_datagrams(&site);
    let sessions = site.open(1..=CLIENTS);
    let [first, second] = spread(&sessions);
    assert!(first > 0 && second > 0, "{first} and {second}");
    let sockets: Vec<UdpSocket> = (1..=CLIENTS).map(|number| datagrams(site.client(number))).collect();
    let exchange = |at: usize, len: usize| {
        let sent = datagram(at as u8, len);
        sockets[at].send(&sent).expect("sent");
        assert_arrived(&sockets[at], &sessions[at], &sent);
    };
    for at in 0..sockets.len() {
        // The smallest that is two packets, and the largest there is, among small ones.
        for len in [3, 1_473, 4_000, 3, 65_507] {
            exchange(at, len);
        }
    }
    for round in 0..10 {
        // Everybody's at once: one's fragments among the others'.
        let sent = |at: usize| datagram(at as u8 ^ round, 4_000);
        for (at, socket) in sockets.iter().enumerate() {
            socket.send(&sent(at)).expect("sent");
        }
        for (at, socket) in sockets.iter().enumerate() {
            assert_arrived(socket, &sessions[at], &sent(at));
        }
    }
}

#[test]
fn datagrams_larger_than_the_mtu_arrive_whole_where_connections_go() {
    large_datagrams_arrive_whole(SERVICE_V4.into());
}

#[test]
fn datagrams_larger_than_the_mtu_arrive_whole_where_connections_go_over_ipv6() {
    large_datagrams_arrive_whole(SERVICE_V6.into());
}

/// The fragments of a UDP datagram, as IPv4 packets that have their checksums from the kernel. `id`: identification.
fn fragments(from: SocketAddr, to: SocketAddr, id: u16, data: &[u8]) -> Vec<Vec<u8>> {
    const PART: usize = 1_480;
    let octets = |address: SocketAddr| match address.ip() {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => panic!("IPv4 alone"),
    };
    let len = (8 + data.len()) as u16;
    // Without a checksum (RFC 768).
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
    let payload = [&ports, data].concat();
    let count = payload.len().div_ceil(PART);
    let fragment = |(at, part): (usize, &[u8])| {
        let place = (at * PART / 8) as u16 | if at + 1 < count { 0x2000 } else { 0 };
        let head = [&[0x45, 0, 0, 0][..], &id.to_be_bytes(), &place.to_be_bytes(), &[64, 17, 0, 0]].concat();
        [&head, &octets(from)[..], &octets(to), part].concat()
    };
    payload.chunks(PART).enumerate().map(fragment).collect()
}

#[test]
fn fragments_whose_first_was_lost_or_comes_last_cost_nothing_but_their_own_datagram() {
    let site = Site::start("", &listen_udp(SERVICE_V4.into()));
    take_datagrams(&site);
    let sessions = site.open(1..=4);
    let sockets: Vec<UdpSocket> = (1..=4).map(|number| datagrams(site.client(number))).collect();
    let raw = site.lan.clients.enter(|| {
        // Protocol 255 (IPPROTO_RAW): the header is the sender's.
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).expect("root may have one")
    });
    for round in 0..20_u8 {
        let (unlucky, other) = (usize::from(round % 4), usize::from((round + 1) % 4));
        let from = sockets[unlucky].local_addr().expect("it is bound");
        let to = site.client(1).target;
        let send = |id: u16, order: &[usize], data: &[u8]| {
            let fragments = fragments(from, to, id, data);
            for &at in order {
                raw.send_to(&fragments[at], &to.into()).expect("sent");
            }
        };
        let lost = datagram(99, 4_000);
        let id = 4 * u16::from(round) + 1;
        send(id, &[1, 2], &lost);
        send(id + 1, &[2, 1, 0], &lost);
        // Once the first is known the others may come in any order.
        let swapped = datagram(round, 4_000);
        send(id + 2, &[0, 2, 1], &swapped);
        assert_arrived(&sockets[unlucky], &sessions[unlucky], &swapped);
        for at in [unlucky, other] {
            let whole = datagram(round, 5_000);
            sockets[at].send(&whole).expect("sent");
            assert_arrived(&sockets[at], &sessions[at], &whole);
        }
    }
    let counters = site.homing.status()["counters"].clone();
    assert_eq!(counters["xdp_fragment"], 20 * 4, "those that came before their first: {counters:#}");
}

#[test]
fn clients_of_a_host_that_falls_silent_reach_the_other_and_the_others_notice_nothing() {
    let mut site = Site::start("", "");
    let sessions: Vec<_> = (1..=CLIENTS).map(|number| client(&site.lan, SERVICE_V4.into(), number).open()).collect();
    let (lost, mut kept): (Vec<_>, Vec<_>) = sessions.into_iter().partition(|session| session.hello.worker == "host 0");
    site.hosts.remove(0);
    site.homing.wait_until("the host is given up", |status| workers(status, 0)[0]["state"] == "backoff");
    for session in lost {
        assert_eq!(session.check().expect("another host answers").status, 404);
    }
    kept.iter_mut().for_each(assert_kept);
}

#[test]
fn killing_homing_changes_nothing_for_clients_of_remote_backends() {
    let mut site = Site::start("", "");
    let Site { homing, lan, .. } = &mut site;
    let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| client(lan, SERVICE_V4.into(), number).open()).collect();
    homing.kill();
    sessions.iter_mut().for_each(assert_kept);
    homing.start_again();
    sessions.iter_mut().for_each(assert_kept);
    homing.wait_until("both backends answer", |status| {
        workers(status, 0).iter().filter(|worker| worker["state"] == "ready").count() == 2
    });
    sessions.iter_mut().for_each(assert_kept);
}

#[test]
fn local_workers_and_remote_hosts_serve_behind_one_address() {
    let more = format!(
        "command = [{:?}, \"demo-worker\", \"--port\", \"{{port}}\"]\n[app.workers]\nmin = 1\nmax = 1\n",
        binary()
    );
    let site = Site::start("", &more);
    site.homing.wait_for_workers(0, 3);
    let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| site.client(number).open()).collect();
    let [first, second] = spread(&sessions);
    let here = sessions.iter().filter(|session| session.hello.worker == "demo/0").count();
    assert!(first > 0 && second > 0 && here > 0, "{first}, {second} and {here} here");
    sessions.iter_mut().for_each(assert_kept);
    // The local worker's clients go on while its slots are a remote host's.
    assert!(site.homing.ask(&["drain", "demo/0"]).status.success());
    sessions.iter_mut().for_each(assert_kept);
    assert_eq!(site.homing.status()["counters"]["http_requests"], 0);
}

#[test]
fn without_the_kernel_path_the_http_path_reaches_the_same_hosts() {
    let site = Site::start("kernel_path = \"off\"", "");
    let mut sessions: Vec<_> = (1..=CLIENTS).map(|number| site.client(number).open()).collect();
    assert!(sessions.iter().all(|session| session.hello.forwarded));
    let [first, second] = spread(&sessions);
    assert!(first > 0 && second > 0, "{first} and {second}");
    sessions.iter_mut().for_each(assert_kept);
}

/// What native XDP sends to a bridge or a VLAN device is gone, and nobody told.
#[test]
fn a_way_that_xdp_cannot_take_is_no_black_hole_but_the_http_paths() {
    let site = Site::start_as(&Plan { device: "br0", settings: "interfaces = [\"eth0\"]", ..Plan::default() });
    let mut sessions = site.open(1..=8);
    sessions.iter_mut().for_each(assert_kept);
    assert!(sessions.iter().all(|session| session.hello.forwarded), "by the HTTP path");
    let obstacle = "the way there leads over br0 (bridge), which takes nothing from XDP on eth0";
    for worker in workers(&site.homing.status(), 0) {
        assert_eq!(worker["reason"], format!("{obstacle}; the HTTP path forwards"), "{worker:#}");
    }
    assert!(site.homing.said().contains(obstacle), "{}", site.homing.said());
    let checked = site.homing.check();
    assert!(String::from_utf8_lossy(&checked.stdout).contains(obstacle), "{checked:?}");
}

#[test]
fn where_the_service_is_on_a_bridge_packets_leave_by_it() {
    let site = Site::start_as(&Plan { device: "br0", ..Plan::default() });
    let mut sessions = site.open(1..=8);
    sessions.iter_mut().for_each(assert_kept);
    let status = site.homing.status();
    assert_eq!(status["kernel_path"]["interfaces"][0]["mode"], "generic", "{status:#}");
    assert_eq!(status["counters"]["http_requests"], 0, "no request passed through homing");
    let checked = site.homing.check();
    assert!(String::from_utf8_lossy(&checked.stdout).contains("packets reach a bridge merged (GRO)"), "{checked:?}");
}

#[test]
fn a_connection_held_by_the_http_path_outlives_the_first_hosts_arrival() {
    let mut site = Site::start("", "");
    site.hosts.clear();
    site.homing.wait_until("both hosts are given up", |status| {
        workers(status, 0).iter().all(|worker| worker["state"] == "backoff")
    });
    let waiting = site.client(1).get("/health").expect("the HTTP path answers");
    assert_eq!(waiting.status, 503, "{waiting:?}");
    // A connection to the HTTP path, kept open while a host comes back.
    let mut kept = site.client(2).connect().expect("homing's own listener takes it");
    site.hosts.push(Host::restart(&site.lan.backends[1], 1));
    site.homing.wait_until("a host is back", |status| workers(status, 0)[1]["state"] == "ready");
    let answer = homing_tests::session::get_on(&mut kept, "/health", "").expect("the connection lives");
    assert_eq!(answer.status, 200, "{answer:?}");
    drop(kept);
    wait_for("new connections go by the kernel path", || (!site.client(2).open().hello.forwarded).then_some(()));
}
