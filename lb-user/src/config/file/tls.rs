//! `[app.tls]`: the certificate and the key that homing ends TLS with.

use std::path::{Path, PathBuf};

use super::keys;
use super::reader::Table;
use super::value;
use crate::config::{App, Forward, Tls};
use crate::tls::Certificate;

pub(super) fn tls(app: &Table<'_>, base: &Path) -> Option<Tls> {
    let table = app.table("tls")?;
    table.know(keys::TLS);
    let file = |key: &str, example: &str, is_good: fn(&Path) -> Result<(), String>| {
        if !table.has(key) {
            table.absent(format!("tls has no `{key}`; add the PEM file, such as {key} = \"{example}\""));
        }
        let parse = |text: &str| {
            let path = value::path(text, base)?;
            is_good(&path).map(|()| path)
        };
        table.parsed(key, parse)
    };
    let certificate = file("certificate", "fullchain.pem", |path| Certificate::chain(path).map(drop));
    let key = file("key", "privkey.pem", |path| Certificate::private_key(path).map(drop));
    let (certificate, key) = (certificate?, key?);
    let tls = Tls { certificate: PathBuf::clone(&certificate.value), key: key.value };
    if let Err(message) = Certificate::load(&tls) {
        table.wrong(certificate.span, message);
        return None;
    }
    Some(tls)
}

/// HTTP/2 without TLS.
pub(super) fn h2c(app: &Table<'_>) -> bool {
    let given = app.flag("h2c").filter(|given| given.value);
    if let Some(given) = given.as_ref().filter(|_| app.has("tls")) {
        app.wrong(
            given.span.clone(),
            "`h2c` is HTTP/2 without TLS, and with `tls` clients have HTTP/2 anyway; remove it",
        );
    }
    given.is_some()
}

/// What keeps an app with TLS from an address: nobody but homing could answer there, and it must know at once how.
pub(super) fn conflict(new: &App, other: &App, address: &str) -> Option<String> {
    let (with, without) = match (&new.tls, &other.tls) {
        (Some(_), None) => (&new.name, &other.name),
        (None, Some(_)) => (&other.name, &new.name),
        _ => return None,
    };
    Some(format!(
        "app `{with}` has `tls` and app `{without}` has none, so they cannot share `{address}`; give `{without}` a certificate, \
         or an address of its own"
    ))
}

/// What a whole app must be for homing to end its TLS.
pub(super) fn check(table: &Table<'_>, app: &App) {
    if app.tls.is_some() && app.backends.iter().any(|backend| backend.forward != Forward::Http) {
        table.wrong(
            table.value("tls").map_or(0..0, toml::Spanned::span),
            "homing cannot end the TLS of backends that are sent packets; use forward = \"http\" for them, or remove `tls`",
        );
    }
}

#[cfg(test)]
mod tests {
    use crate::config::file::tests::{APP, accepted, complaints};
    use crate::tls::testing::{Files, issue};

    fn tls(files: &Files) -> String {
        let crate::config::Tls { certificate, key } = files.tls();
        format!("tls = {{ certificate = {certificate:?}, key = {key:?} }}\n")
    }

    #[test]
    fn files_that_cannot_be_served_with_are_told_where_they_are_given() {
        assert_eq!(
            complaints(&format!("{APP}tls.certificate = \"/nowhere.pem\"")),
            [
                "homing.toml:5:1: tls has no `key`; add the PEM file, such as key = \"privkey.pem\"",
                "homing.toml:5:19: `certificate` `/nowhere.pem` cannot be read: No such file or directory (os error 2)",
            ]
        );
        let files = Files::new(&issue(&["a"]));
        assert_eq!(accepted(&format!("{APP}{}", tls(&files))).apps[0].tls, Some(files.tls()));
        std::fs::write(files.tls().key, issue(&["a"]).key).expect("written");
        let told = complaints(&format!("{APP}{}", tls(&files)));
        assert!(told.len() == 1 && told[0].starts_with("homing.toml:5:23: `"), "{told:?}");
        assert!(told[0].contains("key.pem` is not the key of `"), "{told:?}");
    }

    #[test]
    fn an_address_is_encrypted_for_all_its_apps_or_for_none() {
        let files = Files::new(&issue(&["a"]));
        let plain = "[[app]]\nname = \"b\"\nlisten = [\"127.0.0.1:8080\"]\ncommand = [\"sh\"]\nhosts = [\"b\"]\n";
        assert_eq!(
            complaints(&format!("{APP}{}{plain}", tls(&files))),
            [
                "homing.toml:8:11: app `sales` has `tls` and app `b` has none, so they cannot share `127.0.0.1:8080`; give `b` a \
              certificate, or an address of its own"
            ]
        );
        accepted(&format!("{APP}{0}{plain}{0}", tls(&files)));
        let h2c = complaints(&format!("{APP}h2c = true\n{}", tls(&files)));
        assert!(h2c[0].contains("`h2c` is HTTP/2 without TLS"), "{h2c:?}");
        assert_eq!(
            complaints(&format!("{APP}{plain}h2c = true")),
            [
                "homing.toml:7:11: of the apps `sales` and `b` on `127.0.0.1:8080` one has `h2c` and one has not; give it to both or \
              to none"
            ]
        );
        let direct = format!("{APP}{}backends = [{{ address = \"10.0.0.1:8080\", forward = \"l2\" }}]", tls(&files));
        assert!(complaints(&direct)[0].contains("homing cannot end the TLS of backends that are sent packets"));
    }
}
