//! What a worker is given at its start and keeps until it ends: whether the configuration of now would give it the same.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;

use serde::Serialize;

use super::persist;
use crate::config::isolation::Limits;
use crate::config::{App, Isolation, ListensOn};

/// Not in it: what can change while the worker lives, its bounds of memory and CPU and the signal that asks it to end.
#[derive(PartialEq, Serialize)]
pub(super) struct Given<'a> {
    command: &'a [String],
    directory: &'a [u8],
    user: Option<&'a str>,
    group: Option<&'a str>,
    env: &'a BTreeMap<String, String>,
    listens_on: ListensOn,
    umask: u32,
    limits: Limits,
    no_new_privileges: bool,
}

impl<'a> Given<'a> {
    pub(super) fn by(app: &'a App) -> Self {
        let Isolation { group, umask, limits, no_new_privileges, stop_signal: _, memory_max: _, cpu_weight: _ } =
            &app.isolation;
        Self {
            command: &app.command,
            directory: app.directory.as_os_str().as_bytes(),
            user: app.user.as_deref(),
            group: group.as_deref(),
            env: &app.env,
            listens_on: app.listens_on,
            umask: *umask,
            limits: *limits,
            no_new_privileges: *no_new_privileges,
        }
    }

    /// What the next run compares. The environment may hold secrets, so that it is not written down; and with the random
    /// name of each process in it, two that were given the same do not look alike.
    pub(super) fn fingerprint(&self, incarnation: u64) -> String {
        persist::checksum(&serde_json::to_vec(&(incarnation, self)).expect("words and numbers are always JSON"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn app() -> App {
        let text =
            "[[app]]\nname = \"a\"\nlisten = [\"127.0.0.1:1\"]\ncommand = [\"sh\", \"it\"]\nenv = { TOKEN = \"1\" }\n";
        crate::config::file::parse(text, "homing.toml", Path::new("/")).expect("it is right").apps.remove(0)
    }

    #[test]
    fn whatever_a_worker_is_started_with_is_seen_to_change() {
        type Change = fn(&mut App);
        let changes: [(&str, Change); 11] = [
            ("an argument", |app| app.command[1] = "that".into()),
            ("where arguments end", |app| app.command = vec!["sh it".into()]),
            ("directory", |app| app.directory = "/srv".into()),
            ("user", |app| app.user = Some("nobody".into())),
            ("group", |app| app.isolation.group = Some("nobody".into())),
            ("a variable", |app| drop(app.env.insert("TOKEN".into(), "2".into()))),
            ("one variable less", |app| app.env.clear()),
            ("what it listens on", |app| app.listens_on = ListensOn::Passed),
            ("umask", |app| app.isolation.umask = 0o077),
            ("limits", |app| app.isolation.limits.core = None),
            ("privileges", |app| app.isolation.no_new_privileges = false),
        ];
        let before = app();
        for (what, change) in changes {
            let mut after = app();
            change(&mut after);
            assert!(Given::by(&before) != Given::by(&after), "{what}");
            assert_ne!(Given::by(&before).fingerprint(7), Given::by(&after).fingerprint(7), "{what}");
        }
    }

    #[test]
    fn what_changes_while_it_lives_and_what_is_not_its_own_makes_no_worker_outdated() {
        let (before, mut after) = (app(), app());
        (after.isolation.memory_max, after.isolation.cpu_weight) = (Some(1 << 30), Some(50));
        after.isolation.stop_signal = crate::config::isolation::StopSignal::Int;
        (after.workers.max, after.health.path) = (9, Some("/".into()));
        assert_eq!(Given::by(&before).fingerprint(7), Given::by(&after).fingerprint(7));
    }

    #[test]
    fn fingerprints_of_two_processes_do_not_tell_that_they_were_given_the_same() {
        let app = app();
        assert_ne!(Given::by(&app).fingerprint(7), Given::by(&app).fingerprint(8));
    }
}
