//! The cookie: which worker process holds the user's session, sealed. Reading, writing and hiding it.
//!
//! Browsers share cookies over all ports of a host, so that two apps on one machine meet in one cookie. Its value is
//! therefore a list of places, one per app, each sealed by itself; a homing touches only the place of the app asked
//! for and hands the others back as they came.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{COOKIE, HeaderMap, HeaderValue};

use super::keys::{CookieKeys, Sealed, TAG_BYTES};
use super::limits::COOKIE_PLACES_MAX;
use crate::config::{self, SameSite, Secure};

/// First byte of a place; another layout gets another number.
const VERSION: u8 = 1;
const CONTEXT: &[u8] = b"homing cookie\0";
/// Version, app, incarnation.
const PAYLOAD_BYTES: usize = 1 + 8 + 8;
const PLACE_BYTES: usize = PAYLOAD_BYTES + TAG_BYTES;
const PLACE_CHARS: usize = PLACE_BYTES * 4 / 3;
const SEPARATOR: u8 = b'.';

/// What a request's cookie says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presented {
    /// No cookie of homing with a place for this app.
    Absent,
    /// There is one, and it was not made with our keys.
    Invalid,
    Incarnation(u64),
    /// The same, sealed with the key before the current one: to be given a new cookie before that key is forgotten.
    Aging(u64),
}

impl Presented {
    pub fn incarnation(self) -> Option<u64> {
        match self {
            Self::Incarnation(incarnation) | Self::Aging(incarnation) => Some(incarnation),
            Self::Absent | Self::Invalid => None,
        }
    }
}

/// Reads the place of the app called `app` from the request's cookies. What is not ours to judge is no error.
pub fn read(keys: &CookieKeys, cookie_name: &str, app: &str, headers: &HeaderMap) -> Presented {
    let app_hash = name_hash(app);
    let mut presented = Presented::Absent;
    for place in places(headers, cookie_name) {
        match open(keys, app, app_hash, place) {
            Opened::Ours(presented) => return presented,
            Opened::Forged => presented = Presented::Invalid,
            Opened::OtherApp => {}
        }
    }
    presented
}

/// The `Set-Cookie` value that names `incarnation` for this app and keeps the places of other apps. `is_secure`: the client
/// came by TLS.
pub fn set(
    keys: &CookieKeys,
    cookie: &config::Cookie,
    is_secure: bool,
    app: &str,
    incarnation: u64,
    request: &HeaderMap,
) -> Option<HeaderValue> {
    let app_hash = name_hash(app);
    let mut value = seal(keys, app, incarnation);
    let others = places(request, &cookie.name).filter(|place| matches!(decode(place), Some(d) if d.app != app_hash));
    for other in others.take(COOKIE_PLACES_MAX - 1) {
        value.push(SEPARATOR as char);
        // `decode` accepted it: base64url and nothing else.
        value.push_str(&String::from_utf8_lossy(other));
    }
    let secure = match cookie.secure {
        Secure::Always => true,
        Secure::Auto => is_secure,
        Secure::Never => false,
    };
    // Browsers drop a cookie that asks for either without being secure.
    let same_site = match cookie.same_site {
        SameSite::None if secure => cookie::SameSite::None,
        SameSite::None | SameSite::Lax => cookie::SameSite::Lax,
        SameSite::Strict => cookie::SameSite::Strict,
    };
    let mut built = cookie::Cookie::build((cookie.name.as_str(), value))
        .path(cookie.path.as_str())
        .http_only(true)
        .same_site(same_site)
        .secure(secure)
        .partitioned(cookie.partitioned && secure);
    if let Some(age) = cookie.max_age {
        built = built.max_age(age.try_into().unwrap_or(cookie::time::Duration::MAX));
    }
    // Only a name that is no token could fail, and the configuration refuses those.
    HeaderValue::try_from(built.build().to_string()).ok()
}

/// Removes the cookie from what the worker sees: it is none of the app's business which process it runs in, and an
/// app that logs or echoes cookies must not hand out the right to that place.
pub fn hide(headers: &mut HeaderMap, cookie_name: &str) {
    if pairs(headers).all(|(name, _)| name != cookie_name.as_bytes()) {
        return;
    }
    // Most often there is no other.
    let mut values = headers.get_all(COOKIE).iter();
    if let (Some(only), None) = (values.next(), values.next())
        && !only.as_bytes().contains(&b';')
    {
        headers.remove(COOKIE);
        return;
    }
    let kept: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&b| b == b';'))
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty() && pair_of(pair).0 != cookie_name.as_bytes())
        .collect();
    match HeaderValue::from_bytes(&kept.join(&b"; "[..])) {
        Ok(rest) if !rest.is_empty() => drop(headers.insert(COOKIE, rest)),
        _ => drop(headers.remove(COOKIE)),
    }
}

struct Decoded {
    app: u64,
    payload: [u8; PAYLOAD_BYTES],
    tag: [u8; TAG_BYTES],
}

enum Opened {
    Ours(Presented),
    Forged,
    OtherApp,
}

fn seal(keys: &CookieKeys, app: &str, incarnation: u64) -> String {
    let mut place = [0; PLACE_BYTES];
    place[0] = VERSION;
    place[1..9].copy_from_slice(&name_hash(app).to_be_bytes());
    place[9..PAYLOAD_BYTES].copy_from_slice(&incarnation.to_be_bytes());
    let tag = keys.tag(&[CONTEXT, app.as_bytes(), b"\0", &place[..PAYLOAD_BYTES]]);
    place[PAYLOAD_BYTES..].copy_from_slice(&tag);
    URL_SAFE_NO_PAD.encode(place)
}

fn open(keys: &CookieKeys, app: &str, app_hash: u64, place: &[u8]) -> Opened {
    match decode(place) {
        None => Opened::Forged,
        Some(decoded) if decoded.app != app_hash => Opened::OtherApp,
        Some(Decoded { payload, tag, .. }) => {
            let incarnation = number(&payload[9..]);
            match keys.verify(&[CONTEXT, app.as_bytes(), b"\0", &payload], &tag) {
                Sealed::Current => Opened::Ours(Presented::Incarnation(incarnation)),
                Sealed::Previous => Opened::Ours(Presented::Aging(incarnation)),
                Sealed::Never => Opened::Forged,
            }
        }
    }
}

fn decode(place: &[u8]) -> Option<Decoded> {
    let mut bytes = [0; PLACE_BYTES];
    let length = (place.len() == PLACE_CHARS).then(|| URL_SAFE_NO_PAD.decode_slice(place, &mut bytes).ok())??;
    if length != PLACE_BYTES || bytes[0] != VERSION {
        return None;
    }
    let mut decoded = Decoded { app: number(&bytes[1..9]), payload: [0; PAYLOAD_BYTES], tag: [0; TAG_BYTES] };
    decoded.payload.copy_from_slice(&bytes[..PAYLOAD_BYTES]);
    decoded.tag.copy_from_slice(&bytes[PAYLOAD_BYTES..]);
    Some(decoded)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| (number << 8) | u64::from(byte))
}

/// FNV-1a: tells apps apart, protects nothing (the MAC covers the name). The same on every instance and release.
fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Places in all cookies of that name, at most [`COOKIE_PLACES_MAX`]: each may cost a MAC.
fn places<'a>(headers: &'a HeaderMap, cookie_name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    pairs(headers)
        .filter(move |(name, _)| *name == cookie_name.as_bytes())
        .flat_map(|(_, value)| value.split(|&b| b == SEPARATOR))
        .take(COOKIE_PLACES_MAX)
}

fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&b| b == b';'))
        .map(|pair| pair_of(pair.trim_ascii()))
}

fn pair_of(pair: &[u8]) -> (&[u8], &[u8]) {
    match pair.iter().position(|&b| b == b'=') {
        Some(equals) => (&pair[..equals], &pair[equals + 1..]),
        None => (pair, b""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> CookieKeys {
        CookieKeys::new([7; 32], None)
    }

    fn settings() -> config::Cookie {
        config::Cookie::default()
    }

    fn with(cookies: &[&str]) -> HeaderMap {
        cookies.iter().map(|c| (COOKIE, HeaderValue::from_str(c).unwrap())).collect()
    }

    /// What a browser sends back after a `Set-Cookie`.
    fn returned(set_cookie: &HeaderValue) -> String {
        set_cookie.to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    fn given(app: &str, incarnation: u64, request: &HeaderMap) -> HeaderValue {
        set(&keys(), &settings(), false, app, incarnation, request).unwrap()
    }

    #[test]
    fn a_cookie_comes_back_as_it_went_out() {
        let cookie = given("sales", 42, &with(&[]));
        let attributes = cookie.to_str().unwrap();
        for attribute in ["HttpOnly", "SameSite=Lax", "Path=/"] {
            assert!(attributes.contains(attribute), "{attributes}");
        }
        assert!(!attributes.contains("Secure"), "the client did not come by TLS: {attributes}");
        let request = with(&["a=b", &format!("x=y; {} ;z=1", returned(&cookie))]);
        assert_eq!(read(&keys(), "homing", "sales", &request), Presented::Incarnation(42));
    }

    #[test]
    fn secure_is_set_where_the_configuration_says_so() {
        let always = config::Cookie { secure: Secure::Always, ..settings() };
        let never = config::Cookie { secure: Secure::Never, ..settings() };
        for (setting, by_tls, expected) in
            [(always, false, true), (never, true, false), (settings(), true, true), (settings(), false, false)]
        {
            let cookie = set(&keys(), &setting, by_tls, "sales", 1, &with(&[])).unwrap();
            assert_eq!(cookie.to_str().unwrap().contains("; Secure"), expected, "{cookie:?}");
        }
    }

    #[test]
    fn a_frame_of_another_site_is_served_where_the_cookie_is_secure() {
        let framed = config::Cookie {
            same_site: SameSite::None,
            partitioned: true,
            max_age: Some(std::time::Duration::from_secs(3600)),
            ..settings()
        };
        let plain = set(&keys(), &framed, false, "sales", 1, &with(&[])).unwrap();
        let plain = plain.to_str().unwrap();
        assert!(plain.contains("SameSite=Lax") && plain.contains("Max-Age=3600"), "{plain}");
        assert!(!plain.contains("Partitioned"), "{plain}");
        let secure = set(&keys(), &framed, true, "sales", 1, &with(&[])).unwrap();
        let secure = secure.to_str().unwrap();
        assert!(["SameSite=None", "; Secure", "; Partitioned"].iter().all(|part| secure.contains(part)), "{secure}");
    }

    #[test]
    fn two_apps_on_one_host_share_a_cookie_and_keep_their_places() {
        let sales = returned(&given("sales", 1, &with(&[])));
        let both = returned(&given("stock", 2, &with(&[&sales])));
        let request = with(&[&both]);
        assert_eq!(read(&keys(), "homing", "sales", &request), Presented::Incarnation(1));
        assert_eq!(read(&keys(), "homing", "stock", &request), Presented::Incarnation(2));
        let moved = with(&[&returned(&given("sales", 3, &request))]);
        assert_eq!(read(&keys(), "homing", "sales", &moved), Presented::Incarnation(3));
        assert_eq!(read(&keys(), "homing", "stock", &moved), Presented::Incarnation(2));
    }

    #[test]
    fn the_list_of_places_does_not_grow_without_end() {
        let mut request = with(&[]);
        for n in 0..50 {
            request = with(&[&returned(&given(&format!("app{n}"), n, &request))]);
        }
        let length = request[COOKIE].len();
        assert!(length <= "homing=".len() + COOKIE_PLACES_MAX * (PLACE_CHARS + 1), "{length} bytes");
        assert_eq!(read(&keys(), "homing", "app49", &request), Presented::Incarnation(49));
    }

    #[test]
    fn a_place_of_another_key_or_moved_to_another_app_is_invalid() {
        let ours = returned(&given("sales", 1, &with(&[])));
        let others = CookieKeys::new([8; 32], None);
        assert_eq!(read(&others, "homing", "sales", &with(&[&ours])), Presented::Invalid);
        assert_eq!(read(&keys(), "homing", "stock", &with(&[&ours])), Presented::Absent);
        assert_eq!(read(&keys(), "other", "sales", &with(&[&ours])), Presented::Absent);
    }

    #[test]
    fn hiding_removes_the_cookie_and_nothing_else() {
        let mut headers = with(&["a=1; homing=x; b=2", "homing=y", "c=homing"]);
        hide(&mut headers, "homing");
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=homing"]);
        let mut only = with(&["homing=x"]);
        hide(&mut only, "homing");
        assert!(only.is_empty());
        let mut none = with(&["a=1;b=2"]);
        hide(&mut none, "homing");
        assert_eq!(none[COOKIE], "a=1;b=2", "left byte for byte");
    }

    proptest! {
        #[test]
        fn a_changed_cookie_never_names_a_worker(incarnation: u64, at in 0_usize..PLACE_CHARS, to in "[A-Za-z0-9_-]") {
            let mut value = returned(&given("sales", incarnation, &with(&[])));
            let at = "homing=".len() + at;
            prop_assume!(value[at..=at] != to);
            value.replace_range(at..=at, &to);
            let presented = read(&keys(), "homing", "sales", &with(&[&value]));
            prop_assert!(!matches!(presented, Presented::Incarnation(_)), "{presented:?}");
        }

        #[test]
        fn no_cookie_header_is_too_strange(value in "[ -~]{0,200}") {
            let headers = with(&[&format!("homing={value}")]);
            prop_assert!(!matches!(read(&keys(), "homing", "sales", &headers), Presented::Incarnation(_)));
            let mut hidden = headers.clone();
            hide(&mut hidden, "homing");
            prop_assert!(pairs(&hidden).all(|(name, _)| name != b"homing"));
            given("sales", 1, &headers);
        }
    }
}
