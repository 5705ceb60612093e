//! `[homing]`'s `metrics…`: where metrics and the dashboard are, and who may see them.

use std::path::Path;

use super::listen;
use super::reader::Table;
use super::value;
use crate::config::{App, Metrics};
use crate::metrics::Token;

pub(super) fn read(table: &Table<'_>, base: &Path) -> Option<Metrics> {
    let token = table.parsed("metrics_token_file", |text| {
        let path = value::path(text, base)?;
        Token::read(&path).map(|token| (path, token))
    });
    if !table.has("metrics") {
        for key in ["metrics_token_file", "metrics_actions"].into_iter().filter(|key| table.has(key)) {
            let span = table.value(key).map_or(0..0, toml::Spanned::span);
            table.wrong(
                span,
                format!("`{key}` without `metrics` is of no use; add metrics = \"127.0.0.1:9180\", or remove it"),
            );
        }
        return None;
    }
    let address = table.parsed("metrics", |text| Ok(listen::address(text)))?;
    let span = address.span;
    let address = match address.value {
        Ok(address) => address,
        Err(complaint) => {
            table.wrong(span, complaint);
            return None;
        }
    };
    if !address.ip().is_loopback() && !table.has("metrics_token_file") {
        table.wrong(
            span,
            format!(
                "`metrics` on {address} tells other machines what workers write; add metrics_token_file, or listen on 127.0.0.1"
            ),
        );
        return None;
    }
    let actions = table.flag("metrics_actions").filter(|given| given.value);
    if let Some(given) = actions.as_ref().filter(|_| !table.has("metrics_token_file")) {
        table.wrong(
            given.span.clone(),
            "`metrics_actions` lets the dashboard drain and restart, which not everybody on the machine may; add metrics_token_file",
        );
    }
    let (token_file, token) = token.map(|given| given.value).unzip();
    Some(Metrics { address, token_file, token, actions: actions.is_some() })
}

/// Nobody else may have its address.
pub(super) fn check(table: &Table<'_>, metrics: &Metrics, apps: &[App]) {
    let overlaps = |app: &&App| app.listen.iter().any(|&address| listen::overlaps(address, metrics.address));
    if let (Some(app), Some(given)) = (apps.iter().find(overlaps), table.value("metrics")) {
        table.wrong(
            given.span(),
            format!("`metrics` on {} meets an address of app `{}`; choose another port", metrics.address, app.name),
        );
    }
}

#[cfg(test)]
mod tests {
    use crate::config::file::tests::{APP, accepted, complaints};

    fn with(lines: &str) -> String {
        format!("{APP}[homing]\n{lines}\n")
    }

    #[test]
    fn a_loopback_address_needs_no_token() {
        let metrics = accepted(&with("metrics = \"127.0.0.1:9180\"")).homing.metrics.expect("given");
        assert_eq!((metrics.address, metrics.token), (([127, 0, 0, 1], 9180).into(), None));
        assert_eq!(accepted(APP).homing.metrics, None);
    }

    #[test]
    fn an_address_that_others_reach_needs_one() {
        assert_eq!(
            complaints(&with("metrics = \"0.0.0.0:9180\"")),
            ["homing.toml:6:11: `metrics` on 0.0.0.0:9180 tells other machines what workers write; add \
              metrics_token_file, or listen on 127.0.0.1"]
        );
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("token");
        let lines = with(&format!("metrics = \"0.0.0.0:9180\"\nmetrics_token_file = {file:?}"));
        let told = complaints(&lines);
        assert!(
            told.len() == 1 && told[0].contains("7:22: `metrics_token_file` `") && told[0].contains("cannot be read"),
            "{told:?}"
        );
        std::fs::write(&file, "0123456789abcdef\n").expect("written");
        let metrics = accepted(&lines).homing.metrics.expect("given");
        assert!(metrics.token.is_some_and(|token| token.is(b"0123456789abcdef")));
        assert_eq!(metrics.token_file.as_deref(), Some(file.as_path()));
    }

    #[test]
    fn orders_need_a_token() {
        assert_eq!(
            complaints(&with("metrics = \"127.0.0.1:9180\"\nmetrics_actions = true")),
            [
                "homing.toml:7:19: `metrics_actions` lets the dashboard drain and restart, which not everybody on the machine may; \
              add metrics_token_file"
            ]
        );
        assert_eq!(
            complaints(&with("metrics_actions = true")),
            [
                "homing.toml:6:19: `metrics_actions` without `metrics` is of no use; add metrics = \"127.0.0.1:9180\", or remove it"
            ]
        );
    }

    #[test]
    fn what_cannot_be_listened_on_is_told() {
        for (value, told) in [
            ("\"9180\"", "`9180` names no address; write \"0.0.0.0:9180\" for IPv4, \"[::]:9180\" for IPv6, or both"),
            ("\"127.0.0.1:0\"", "`127.0.0.1:0` has port 0; give the port that clients connect to"),
            ("true", "`metrics` must be a string in quotes, not true or false"),
            ("\"127.0.0.1:8080\"", "`metrics` on 127.0.0.1:8080 meets an address of app `sales`; choose another port"),
        ] {
            assert_eq!(complaints(&with(&format!("metrics = {value}"))), [format!("homing.toml:6:11: {told}")]);
        }
    }
}
