//! The control socket: what `homing status`, `trace` and `stop` ask of a running homing, and how.
//!
//! HTTP with JSON over a unix socket of mode 0600. It answers from what control tells it and decides nothing.

pub mod client;
pub mod report;
#[cfg(test)]
mod schema;
pub mod server;

use crate::config::file::nearest;

/// What is said of a name that no app has.
pub fn unknown_app<'a>(name: &str, there: impl Iterator<Item = &'a str>) -> String {
    let there: Vec<&str> = there.collect();
    let all = there.join(", ");
    match nearest(name, there.iter().copied()) {
        Some(near) => format!("no app is called {name:?}; did you mean {near}? There are: {all}"),
        None => format!("no app is called {name:?}; there are: {all}"),
    }
}

#[cfg(test)]
mod tests {
    use super::unknown_app;

    #[test]
    fn a_name_that_is_nearly_one_of_those_that_are_there_is_told() {
        let told = |name| unknown_app(name, ["sales", "stock"].into_iter());
        assert_eq!(told("slaes"), "no app is called \"slaes\"; did you mean sales? There are: sales, stock");
        assert_eq!(told("weather"), "no app is called \"weather\"; there are: sales, stock");
    }
}
