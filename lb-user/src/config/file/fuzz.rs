//! What the reader of the configuration promises of any text: a configuration whose apps can all be reached, or errors
//! that can be shown.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::config::{Host, Route};
use crate::routing::Door;

const NAME: &str = "homing.toml";

pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match parse(text, NAME, Path::new("/")) {
        Ok(config) => is_sound(&config),
        Err(errors) => can_be_shown(&errors, text),
    }
}

fn is_sound(config: &Config) {
    let names: BTreeSet<&str> = config.apps.iter().map(|app| app.name.as_str()).collect();
    assert!(!names.is_empty() && names.len() == config.apps.len(), "apps have names of their own");
    let mut behind: BTreeMap<_, Vec<(u32, &Route)>> = BTreeMap::new();
    for (number, app) in (0..).zip(&config.apps) {
        assert!(!app.listen.is_empty() && app.workers.min <= app.workers.max, "{app:?}");
        assert!(app.route.path.starts_with('/'), "{app:?}");
        assert!(!app.command.is_empty() || !app.backends.is_empty(), "{app:?}");
        for address in &app.listen {
            behind.entry(*address).or_default().push((number, &app.route));
        }
    }
    for (address, routes) in behind {
        let door = Door::new(routes.iter().copied(), false);
        for (number, route) in routes {
            for host in route.patterns() {
                let host = match host {
                    None => "nobody.else.example".to_owned(),
                    Some(Host::Exact(name)) => name.clone(),
                    Some(Host::Below(name)) => format!("nobody.else.example.{name}"),
                };
                let found = door.find(host.as_bytes(), &route.path).map(|found| found.app);
                assert_eq!(found, Ok(number), "{host}{} on {address}", route.path);
            }
        }
    }
}

fn can_be_shown(errors: &Errors, text: &str) {
    assert!((1..=TOLD_MAX + 1).contains(&errors.0.len()), "{} errors", errors.0.len());
    for Problem { file, place, message } in &errors.0 {
        assert!(file == NAME && !message.is_empty() && !message.contains('\n'), "{message:?}");
        let Some(place) = place else { continue };
        let line = text.split('\n').nth(place.line - 1).map(|line| line.trim_end_matches('\r'));
        assert_eq!(line, Some(place.text.as_str()), "{message}");
        assert!((1..=place.text.chars().count() + 2).contains(&place.column), "{place:?}");
    }
    // And to a terminal without doing anything to it.
    let shown = errors.to_string();
    assert!(shown.chars().all(|character| character == '\n' || !character.is_control()), "{shown:?}");
}
