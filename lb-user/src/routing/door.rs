//! What is behind one listen address: the apps there, told apart by host and path.
//!
//! Made once for a configuration and never changed. A path is compared as it was sent, but for letters, digits and `-._~`
//! that are written as `%XX` and mean the same (RFC 3986 section 6.2.2.2); what follows the prefix goes on byte for byte.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::Arc;

use rustls::ServerConfig;

use crate::config::{Host, Route};

/// A name in the DNS has at most 253 characters; nobody's host is longer.
const HOST_BYTES_MAX: usize = 253;

/// A listen address, seen from outside.
#[derive(Debug, Default)]
pub struct Door {
    exact: HashMap<String, Paths>,
    below: HashMap<String, Paths>,
    any: Paths,
    /// Some app has a path of its own.
    by_path: bool,
    /// The only app that is here.
    sole: Option<u32>,
    /// Lists and rates are kept by the HTTP path: the kernel does not know whose connection it is, or does nothing here.
    pub guards: bool,
    /// What clients are served with who all come by TLS.
    pub tls: Option<Arc<ServerConfig>>,
    /// Every connection is a trusted proxy's, and says first whose it is.
    pub proxy_protocol: bool,
    /// Clients may speak HTTP/2 without TLS.
    pub h2c: bool,
}

/// The apps of one host, the longest path first.
type Paths = Vec<Below>;

#[derive(Debug)]
struct Below {
    path: String,
    strip: bool,
    app: u32,
}

/// Whose a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'d> {
    pub app: u32,
    /// What its workers do not see of the path, as it is configured, and how many bytes of the request's path that are.
    pub stripped: Option<(&'d str, usize)>,
}

/// Why a request is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// No app is there.
    Nobody,
    /// What one reader takes for one app's path is another's for the next: `/sales/../stock`.
    Dots,
}

impl Door {
    /// `apps`: each with its number. `guards`: of an app that is alone here.
    pub fn new<'a>(apps: impl IntoIterator<Item = (u32, &'a Route)>, guards: bool) -> Self {
        let mut door = Self { guards, ..Self::default() };
        let mut numbers = Vec::new();
        for (app, route) in apps {
            numbers.push(app);
            door.by_path |= route.path != "/";
            for host in route.patterns() {
                let paths = match host {
                    Some(Host::Exact(name)) => door.exact.entry(name.clone()).or_default(),
                    Some(Host::Below(name)) => door.below.entry(name.clone()).or_default(),
                    None => &mut door.any,
                };
                paths.push(Below { path: route.path.clone(), strip: route.strip_path && route.path != "/", app });
            }
        }
        for paths in door.exact.values_mut().chain(door.below.values_mut()).chain([&mut door.any]) {
            paths.sort_by(|a, b| b.path.len().cmp(&a.path.len()).then_with(|| a.path.cmp(&b.path)));
        }
        match numbers[..] {
            [app] => door.sole = Some(app),
            // Who opens a connection has not said yet whom it is for.
            _ => door.guards = true,
        }
        door
    }

    /// With TLS, or without.
    pub fn with_tls(self, tls: Option<Arc<ServerConfig>>) -> Self {
        Self { tls, ..self }
    }

    /// With the PROXY protocol, or without.
    pub fn with_proxy_protocol(self, proxy_protocol: bool) -> Self {
        Self { proxy_protocol, ..self }
    }

    /// With HTTP/2 without TLS, or not.
    pub fn with_h2c(self, h2c: bool) -> Self {
        Self { h2c, ..self }
    }

    /// The app, if there is but one: then a connection is its own before it has said anything.
    pub fn sole(&self) -> Option<u32> {
        self.sole
    }

    /// The app of a request. A host's own routes go before those of a wildcard, the longest first, and these before those
    /// of any host; among a host's the longest path does.
    pub fn find(&self, host: &[u8], path: &str) -> Result<Found<'_>, Lost> {
        if self.by_path && has_dot_segments(path.as_bytes()) {
            return Err(Lost::Dots);
        }
        let by_host = if self.exact.is_empty() && self.below.is_empty() { None } else { self.by_host(host, path) };
        by_host.or_else(|| longest(&self.any, path)).ok_or(Lost::Nobody)
    }

    fn by_host(&self, host: &[u8], path: &str) -> Option<Found<'_>> {
        let name = canonical(host)?;
        if let Some(found) = self.exact.get(&name).and_then(|paths| longest(paths, path)) {
            return Some(found);
        }
        let parents = name.match_indices('.').filter(|(at, _)| *at > 0).map(|(at, _)| &name[at + 1..]);
        parents.filter_map(|parent| self.below.get(parent)).find_map(|paths| longest(paths, path))
    }
}

fn longest<'d>(paths: &'d Paths, path: &str) -> Option<Found<'d>> {
    paths.iter().find_map(|below| {
        let end = end_of_prefix(path.as_bytes(), &below.path)?;
        let stripped = below.strip.then_some((below.path.as_str(), end));
        Some(Found { app: below.app, stripped })
    })
}

/// Where in `path` the prefix ends, if it begins so and a segment ends there.
fn end_of_prefix(path: &[u8], prefix: &str) -> Option<usize> {
    if prefix == "/" {
        return Some(0);
    }
    let mut at = 0;
    for &wanted in prefix.as_bytes() {
        let (byte, length) = decoded(&path[at..])?;
        // A slash that is written as %2F separates nothing.
        if byte != wanted || (length > 1 && wanted == b'/') {
            return None;
        }
        at += length;
    }
    matches!(path.get(at), None | Some(b'/')).then_some(at)
}

/// The first character, and how many bytes it took.
fn decoded(path: &[u8]) -> Option<(u8, usize)> {
    let digit = |at: usize| path.get(at).and_then(|&digit| char::from(digit).to_digit(16));
    match (path.first()?, digit(1), digit(2)) {
        (b'%', Some(high), Some(low)) => Some(((high * 16 + low) as u8, 3)),
        (&byte, ..) => Some((byte, 1)),
    }
}

/// Whether somebody who decodes the path and takes `..` for the parent, in whatever order, might leave it.
fn has_dot_segments(path: &[u8]) -> bool {
    let (mut at, mut dots, mut others) = (0, 0, false);
    let is_dots = |dots: usize, others: bool| !others && (dots == 1 || dots == 2);
    while let Some((byte, length)) = decoded(&path[at..]) {
        match byte {
            b'/' | b'\\' | b';' if is_dots(dots, others) => return true,
            b'/' | b'\\' => (dots, others) = (0, false),
            b'.' => dots += 1,
            _ => others = true,
        }
        at += length;
    }
    is_dots(dots, others)
}

/// A request's host as patterns have it: without its port and a dot at the end, in lower case.
fn canonical(host: &[u8]) -> Option<String> {
    if let [b'[', rest @ ..] = host {
        let end = rest.iter().position(|&byte| byte == b']')?;
        let address: Ipv6Addr = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
        return Some(format!("[{address}]"));
    }
    let name = host.split(|&byte| byte == b':').next()?;
    let name = name.strip_suffix(b".").unwrap_or(name);
    if name.len() > HOST_BYTES_MAX {
        return None;
    }
    std::str::from_utf8(name).ok().map(str::to_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(hosts: &[&str], path: &str) -> Route {
        let host = |text: &&str| match text.strip_prefix("*.") {
            Some(name) => Host::Below(name.to_owned()),
            None => Host::Exact((*text).to_owned()),
        };
        Route { hosts: hosts.iter().map(host).collect(), path: path.to_owned(), strip_path: true }
    }

    fn door(routes: &[Route]) -> Door {
        Door::new((0..).zip(routes), false)
    }

    fn found(door: &Door, host: &str, path: &str) -> Option<u32> {
        door.find(host.as_bytes(), path).ok().map(|found| found.app)
    }

    #[test]
    fn the_host_that_says_more_goes_first() {
        let door = door(&[
            route(&[], "/"),
            route(&["*.example.org"], "/"),
            route(&["*.eu.example.org"], "/"),
            route(&["sales.example.org", "[::1]"], "/"),
        ]);
        for (host, app) in [
            ("sales.example.org", 3),
            ("SALES.Example.ORG.:8080", 3),
            ("[0:0::1]:80", 3),
            ("stock.example.org", 1),
            ("a.b.example.org:1", 1),
            ("a.eu.example.org", 2),
            ("sales.eu.example.org", 2),
            ("eu.example.org", 1),
            ("example.org", 0),
            (".example.org", 0),
            ("example.org.evil.test", 0),
            ("notexample.org", 0),
            ("", 0),
        ] {
            assert_eq!(found(&door, host, "/"), Some(app), "{host}");
        }
    }

    #[test]
    fn the_longest_path_wins_where_a_segment_ends() {
        let door = door(&[route(&[], "/"), route(&[], "/sales"), route(&[], "/sales/eu"), route(&["b"], "/only")]);
        for (path, app) in [
            ("/", 0),
            ("/sale", 0),
            ("/salesx", 0),
            ("/Sales/", 0),
            ("//sales/", 0),
            ("/sales", 1),
            ("/sales/", 1),
            ("/sales//eu", 1),
            ("/sales/eux", 1),
            ("/sales%2Feu/x", 0),
            ("/%73al%65s/x", 1),
            ("/sales/eu", 2),
            ("/sales/%65u/x/y", 2),
        ] {
            assert_eq!(found(&door, "a", path), Some(app), "{path}");
        }
        assert_eq!((found(&door, "b", "/only/x"), found(&door, "b", "/sales")), (Some(3), Some(1)), "the next host");
        assert_eq!(door.find(b"a", "/%73ales/x").unwrap().stripped, Some(("/sales", 8)));
        assert_eq!(door.find(b"a", "/x").unwrap().stripped, None);
    }

    #[test]
    fn where_nobody_is_nobody_is_found() {
        let door = door(&[route(&["a"], "/x"), route(&["*.b"], "/")]);
        for (host, path) in [("a", "/"), ("a", "/xy"), ("b", "/"), ("c", "/x")] {
            assert_eq!(door.find(host.as_bytes(), path), Err(Lost::Nobody), "{host}{path}");
        }
        assert_eq!(Door::new([], false).find(b"a", "/"), Err(Lost::Nobody));
    }

    #[test]
    fn dots_that_could_lead_from_one_app_to_the_next_are_told() {
        let by_path = door(&[route(&[], "/sales"), route(&[], "/stock")]);
        for path in [
            "/sales/../stock",
            "/sales/..",
            "/sales/./x",
            "/sales/%2e%2E/stock",
            "/sales/.%2e/stock",
            "/sales/..%2fstock",
            "/sales%2f..%2fstock",
            "/sales/..\\stock",
            "/sales/x%5c..%5c..",
            "/sales/..;a=1/stock",
            "/..",
        ] {
            assert_eq!(by_path.find(b"a", path), Err(Lost::Dots), "{path}");
        }
        for path in [
            "/sales/...",
            "/sales/.hidden",
            "/sales/a..b/",
            "/sales/x%2Fy",
            "/sales/%252e%252e/",
            "/sales/%",
            "/sales/%zz",
        ] {
            assert_eq!(found(&by_path, "a", path), Some(0), "{path}");
        }
        assert_eq!(found(&door(&[route(&[], "/")]), "a", "/a/../b"), Some(0), "one app's own business");
    }

    fn segment() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["a", "b", "ab", "c"]).prop_map(str::to_owned)
    }

    fn path() -> impl Strategy<Value = String> {
        prop::collection::vec(segment(), 0..4).prop_map(|segments| format!("/{}", segments.join("/")))
    }

    fn a_route() -> impl Strategy<Value = Route> {
        let hosts = prop::collection::vec(prop::sample::select(vec!["x.y", "y", "*.y", "*.x.y"]), 0..2);
        (hosts, path()).prop_map(|(hosts, path)| route(&hosts, &path))
    }

    proptest! {
        /// Against the definition: of all routes that match, the one that says most.
        #[test]
        fn the_one_that_says_most_wins_in_whatever_order(
            routes in prop::collection::vec(a_route(), 1..8),
            host in prop::sample::select(vec!["x.y", "y", "z.x.y", "q.y", "w"]),
            path in path(),
            turn in 0_usize..8,
        ) {
            let mut distinct: Vec<(u32, Route)> = Vec::new();
            for (app, route) in (0..).zip(routes) {
                let is_taken = |other: &Route| other.path == route.path && other.patterns().any(|a| route.patterns().any(|b| a == b));
                if !distinct.iter().any(|(_, other)| is_taken(other)) {
                    distinct.push((app, route));
                }
            }
            let score = |pattern: Option<&Host>| match pattern {
                Some(Host::Exact(name)) if name == host => Some((2, name.len())),
                Some(Host::Below(name)) if host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.')) => Some((1, name.len())),
                None => Some((0, 0)),
                Some(_) => None,
            };
            let below = |prefix: &str| prefix == "/" || path == prefix || path.starts_with(&format!("{prefix}/"));
            let best = distinct
                .iter()
                .filter(|(_, route)| below(&route.path))
                .filter_map(|(app, route)| Some((route.patterns().filter_map(score).max()?, route.path.len(), *app)))
                .max();
            let turn = turn % distinct.len();
            distinct.rotate_left(turn);
            let door = Door::new(distinct.iter().map(|(app, route)| (*app, route)), false);
            prop_assert_eq!(found(&door, host, &path), best.map(|(.., app)| app));
        }

        #[test]
        fn no_host_and_no_path_is_too_strange(host: Vec<u8>, path in "/[ -~]{0,40}") {
            let door = door(&[route(&["a.b"], "/x"), route(&["*.b"], "/x/y"), route(&[], "/")]);
            if let Ok(found) = door.find(&host, &path) && let Some((prefix, end)) = found.stripped {
                prop_assert!(end >= prefix.len() && path.is_char_boundary(end));
                prop_assert!(matches!(path.as_bytes().get(end), None | Some(b'/')));
            }
        }
    }
}
