//! What `cookie` promises of any request.

use super::*;

const APPS: [&str; 2] = ["sales", "stock"];
const NAME: &str = "homing";

/// Each line is a `Cookie` header. The keys are known, so that a seed can have places that are ours.
pub fn cookie(bytes: &[u8]) {
    let keys = CookieKeys::new([7; 32], Some([8; 32]));
    let lines = bytes.split(|&byte| byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok());
    let headers: HeaderMap = lines.map(|line| (COOKIE, line)).collect();
    let before = APPS.map(|app| read(&keys, NAME, app, &headers));
    for (app, presented) in APPS.into_iter().zip(before) {
        let made_by = match presented {
            Presented::Incarnation(_) => [7; 32],
            Presented::Aging(_) => [8; 32],
            Presented::Absent | Presented::Invalid => continue,
        };
        let incarnation = presented.incarnation().expect("both have one");
        let sealed = seal(&CookieKeys::new(made_by, None), app, incarnation);
        assert!(places(&headers, NAME).any(|place| place == sealed.as_bytes()), "{presented:?} was never sealed");
    }
    is_given(&keys, &headers, before[1]);
    is_hidden(&headers);
}

/// A new place is believed, the other app's is kept, and the list stays short.
fn is_given(keys: &CookieKeys, headers: &HeaderMap, stock: Presented) {
    let cookie = set(keys, &config::Cookie::default(), false, "sales", 42, headers).expect("the name is a token");
    let pair = cookie.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default();
    assert!(pair.len() <= NAME.len() + COOKIE_PLACES_MAX * (PLACE_CHARS + 1), "{} bytes", pair.len());
    let returned = HeaderMap::from_iter([(COOKIE, HeaderValue::from_bytes(pair).expect("part of a header"))]);
    assert_eq!(read(keys, NAME, "sales", &returned), Presented::Incarnation(42));
    if stock.incarnation().is_some() && places(headers, NAME).count() < COOKIE_PLACES_MAX {
        assert_eq!(read(keys, NAME, "stock", &returned), stock, "the other app's place is handed back");
    }
}

/// Nothing is left of it, and all else is there in its order.
fn is_hidden(headers: &HeaderMap) {
    let mut hidden = headers.clone();
    hide(&mut hidden, NAME);
    let is_other = |(name, value): &(&[u8], &[u8])| *name != NAME.as_bytes() && !(name.is_empty() && value.is_empty());
    assert!(pairs(&hidden).all(|(name, _)| name != NAME.as_bytes()));
    assert!(pairs(&hidden).filter(is_other).eq(pairs(headers).filter(is_other)), "{headers:?} became {hidden:?}");
}
