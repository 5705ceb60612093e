//! Listeners and what they are told, without a kernel and without requests.

use lb_common::abi::BackendId;
use lb_common::tap::TAP_OPEN_NS;

use super::*;

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));
const NOTHING: [TapCounts; SLOTS] = [TapCounts { seen: 0, too_fast: 0, no_room: 0 }; SLOTS];

/// For everything, at this rate.
fn tap(rate: u32) -> Tap {
    Tap::new(EVERY_APP, Addr::default(), 0, 1, rate)
}

fn request(live: &Live, app: impl Into<Option<u32>>, address: IpAddr) {
    live.request(app.into(), address, || line::Request {
        time: line::now(),
        client: address,
        port: None,
        app: None,
        path: "http".to_owned(),
        rule: None,
        worker: None,
        method: "GET".to_owned(),
        target: "/".to_owned(),
        status: 200,
        held_ms: None,
        ms: 0.1,
        refused: None,
        request_id: String::new(),
    });
}

fn decision(taps: u16) -> Decision {
    Decision { address: ADDRESS.into(), backend: BackendId::NONE, app: 1, rule: Rule::Denied as u32, port: 9, taps }
}

/// What is there to be read now.
fn lines(listening: &mut Listening) -> Vec<Line> {
    std::iter::from_fn(|| listening.lines.try_recv().ok()).collect()
}

#[test]
fn each_listener_is_told_what_it_asked_for() {
    let live = Live::default();
    assert!(!live.is_listening());
    let (_, mut all) = live.listen(tap(100), &NOTHING).expect("room");
    let (_, mut one) = live.listen(Tap::new(1, ADDRESS.into(), 128, 1, 100), &NOTHING).expect("room");
    request(&live, 1, ADDRESS);
    request(&live, 2, ADDRESS);
    request(&live, 1, "192.0.2.8".parse().unwrap());
    request(&live, None, ADDRESS);
    assert_eq!((lines(&mut all).len(), lines(&mut one).len()), (4, 1), "one of no app is told to who listens to all");
}

#[test]
fn the_fifth_listener_is_refused_until_one_has_gone() {
    let live = Live::default();
    let mut all: Vec<_> = (0..SLOTS).map(|_| live.listen(tap(1), &NOTHING).expect("room").1).collect();
    assert!(live.listen(tap(1), &NOTHING).is_none());
    drop(all.remove(1));
    assert_eq!(live.listen(tap(1), &NOTHING).expect("room").0, 1, "its place");
    drop(all);
    assert!(!live.is_listening());
    assert_eq!(live.taps(5), Taps::default(), "nobody is there to tell");
}

#[test]
fn taps_are_open_for_the_kernel_until_the_moment_that_is_named() {
    let live = Live::default();
    let (place, _listening) = live.listen(tap(7), &NOTHING).expect("room");
    let taps = live.taps(TAP_OPEN_NS);
    assert_eq!((taps.until_ns, taps.taps[place]), (TAP_OPEN_NS, Tap { until_ns: TAP_OPEN_NS, ..tap(7) }));
}

#[test]
fn what_comes_too_fast_or_finds_no_room_is_counted_and_said_once() {
    let live = Live::default();
    let (place, mut slow) = live.listen(tap(10_000), &NOTHING).expect("room");
    for _ in 0..LINES_MAX + 5 {
        live.decided(&Snapshot::default(), &decision(1 << place));
    }
    live.tick(&NOTHING);
    assert_eq!(lines(&mut slow).len(), LINES_MAX, "there was no room for the line that says so, either");
    let mut kernel = NOTHING;
    kernel[place] = TapCounts { seen: 50, too_fast: 30, no_room: 7 };
    live.tick(&kernel);
    live.tick(&kernel);
    let [Line::Missed(Missed { decisions: 42, .. }), Line::Alive] = &lines(&mut slow)[..] else { panic!() };
    let (_, mut next) = live.listen(tap(1), &[kernel[place]; SLOTS]).expect("room");
    request(&live, 1, ADDRESS);
    request(&live, 1, ADDRESS);
    live.tick(&[kernel[place]; SLOTS]);
    let told = lines(&mut next);
    let [Line::Request(_), Line::Missed(Missed { decisions: 1, .. })] = &told[..] else { panic!("{told:?}") };
}

#[test]
fn what_was_decided_for_a_listener_that_has_gone_is_not_told_to_the_next_one() {
    let live = Live::default();
    drop(live.listen(tap(1), &NOTHING).expect("room"));
    let (place, mut other) = live.listen(Tap::new(2, Addr::default(), 0, 1, 100), &NOTHING).expect("room");
    live.decided(&Snapshot::default(), &decision(1 << place));
    assert!(lines(&mut other).is_empty(), "it listens to another app");
    live.end();
    assert!(!live.is_listening());
    assert_eq!(other.lines.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
}

#[test]
fn a_time_is_told_to_the_millisecond() {
    let now = line::now();
    let read = time::OffsetDateTime::now_utc().year().to_string();
    assert!(now.len() == "2026-11-21T14:16:46.250Z".len() && now.ends_with('Z') && now[..4] == read, "{now}");
}
