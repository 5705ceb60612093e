//! What `find` promises of any routes and any request: of all routes that match, the one that says most.

use super::*;
use crate::fuzzing::Input;

const NAMES: [&str; 6] = ["a", "b.a", "c.b.a", "example.org", "[::1]", "x"];
const SEGMENTS: [&str; 6] = ["sales", "stock", "a", "b", "~.x", "ab"];
/// Routes enough to stand in each other's way.
const ROUTES_MAX: u8 = 8;

/// Routes by number, then a host and a path as they are sent, apart by a line's end.
pub fn door(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut routes: Vec<Route> = Vec::new();
    for _ in 0..input.byte() % (ROUTES_MAX + 1) {
        let route = route(&mut input);
        // The configuration refuses two apps with one meaning.
        let is_taken = |other: &Route| {
            other.path == route.path && other.patterns().any(|one| route.patterns().any(|another| one == another))
        };
        if !routes.iter().any(is_taken) {
            routes.push(route);
        }
    }
    let at = input.0.iter().position(|&byte| byte == b'\n').unwrap_or(input.0.len());
    let host = input.take(at);
    let Ok(path) = std::str::from_utf8(input.0.get(1..).unwrap_or(b"/")) else { return };
    let door = Door::new((0..).zip(&routes), false);
    let found = door.find(host, path);
    assert_eq!(found, expected(&routes, host, path));
    // Whatever else: who gets a request that is stripped gets a path that goes on where a segment ended.
    if let Ok(Found { stripped: Some((_, end)), .. }) = found {
        assert!(path.is_char_boundary(end) && matches!(path.as_bytes().get(end), None | Some(b'/')), "{path} at {end}");
    }
    let mut turned: Vec<_> = (0..).zip(&routes).collect();
    turned.reverse();
    assert_eq!(Door::new(turned, false).find(host, path), found, "in whatever order");
}

fn route(input: &mut Input<'_>) -> Route {
    let mut hosts = Vec::new();
    for _ in 0..input.byte() % 3 {
        let name = input.pick(&NAMES);
        let is_below = input.byte() & 1 == 1 && !name.starts_with('[');
        hosts.push(if is_below { Host::Below((*name).to_owned()) } else { Host::Exact((*name).to_owned()) });
    }
    let segments: Vec<&str> = (0..input.byte() % 3).map(|_| *input.pick(&SEGMENTS)).collect();
    Route { hosts, path: format!("/{}", segments.join("/")), strip_path: input.byte() & 1 == 1 }
}

/// By definition, and slowly.
fn expected<'r>(routes: &'r [Route], host: &[u8], path: &str) -> Result<Found<'r>, Lost> {
    if routes.iter().any(|route| route.path != "/") && is_a_way_out(path.as_bytes()) {
        return Err(Lost::Dots);
    }
    let host = named(host);
    let score = |pattern: Option<&Host>| match (pattern, &host) {
        (None, _) => Some((0, 0)),
        (Some(Host::Exact(name)), Some(host)) if name == host => Some((2, name.len())),
        (Some(Host::Below(name)), Some(host)) => {
            let rest = host.strip_suffix(name.as_str())?;
            (rest.len() > 1 && rest.ends_with('.')).then_some((1, name.len()))
        }
        _ => None,
    };
    let all = (0..).zip(routes).filter_map(|(app, route)| {
        let end = end_below(path.as_bytes(), &route.path)?;
        let says = (route.patterns().filter_map(score).max()?, route.path.len());
        let stripped = (route.strip_path && route.path != "/").then_some((route.path.as_str(), end));
        Some((says, Found { app, stripped }))
    });
    all.max_by_key(|(says, _)| *says).map(|(_, found)| found).ok_or(Lost::Nobody)
}

fn named(host: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(host).ok();
    if host.first() == Some(&b'[') {
        let end = host.iter().position(|&byte| byte == b']')?;
        let address: Ipv6Addr = std::str::from_utf8(&host[1..end]).ok()?.parse().ok()?;
        return Some(format!("[{address}]"));
    }
    let name = match text {
        Some(text) => text.split(':').next()?,
        None => std::str::from_utf8(host.split(|&byte| byte == b':').next()?).ok()?,
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    (name.len() <= HOST_BYTES_MAX).then_some(name)
}

/// Segment by segment: those of the prefix are those of the path, once decoded; slashes are as they were sent.
fn end_below(path: &[u8], prefix: &str) -> Option<usize> {
    if prefix == "/" {
        return Some(0);
    }
    let mut end = 0;
    let mut sent = path.split(|&byte| byte == b'/');
    for wanted in prefix.split('/') {
        let segment = sent.next()?;
        if unescaped(segment) != wanted.as_bytes() {
            return None;
        }
        end += segment.len() + 1;
    }
    Some(end - 1)
}

/// A segment that is one or two dots to somebody.
fn is_a_way_out(path: &[u8]) -> bool {
    let decoded = unescaped(path);
    let mut segments = decoded.split(|byte| matches!(byte, b'/' | b'\\'));
    segments.any(|segment| {
        let name = segment.split(|&byte| byte == b';').next().unwrap_or_default();
        matches!(name, b"." | b"..")
    })
}

fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = text;
    while let [first, others @ ..] = rest {
        let code = others.get(..2).filter(|_| *first == b'%').and_then(|digits| {
            let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
            std::str::from_utf8(digits).ok().filter(|_| is_hex).and_then(|text| u8::from_str_radix(text, 16).ok())
        });
        plain.push(code.unwrap_or(*first));
        rest = if code.is_some() { &others[2..] } else { others };
    }
    plain
}
