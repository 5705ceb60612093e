//! Certificates in use, loaded anew when their files change. A pair that is broken leaves the one before it in use.

use std::collections::HashMap;
use std::sync::Arc;

use super::runner::Runner;
use crate::config::{App, Tls};
use crate::tls::{Certificate, Stamp, Tickets};

/// By the files that they come from.
pub(super) struct Certificates {
    pairs: HashMap<Tls, Pair>,
    pub(super) tickets: Tickets,
}

struct Pair {
    certificate: Arc<Certificate>,
    /// Of the files that were read last, whatever came of it.
    read: Stamp,
    /// At the last look: who renews a pair writes one file after the other.
    seen: Stamp,
}

impl Certificates {
    /// # Errors
    /// When the system gives no random bytes.
    pub(super) fn new() -> Result<Self, String> {
        Ok(Self { pairs: HashMap::new(), tickets: Tickets::new()? })
    }

    pub(super) fn of(&self, app: &App) -> Option<Arc<Certificate>> {
        self.pairs.get(app.tls.as_ref()?).map(|pair| Arc::clone(&pair.certificate))
    }

    /// Loads what these apps need and is not there, and forgets the rest. Which files could not be used, and why.
    pub(super) fn fit(&mut self, apps: &[App]) -> Vec<String> {
        self.pairs.retain(|files, _| apps.iter().any(|app| app.tls.as_ref() == Some(files)));
        let mut complaints = Vec::new();
        for files in apps.iter().filter_map(|app| app.tls.as_ref()) {
            if self.pairs.contains_key(files) {
                continue;
            }
            let stamp = Stamp::of(files);
            match Certificate::load(files) {
                Ok(certificate) => {
                    let certificate = Arc::new(certificate);
                    self.pairs.insert(files.clone(), Pair { certificate, read: stamp, seen: stamp });
                }
                Err(why) => complaints.push(why),
            }
        }
        complaints
    }

    /// Reads files that have changed, and stayed as they are since the last look unless it is `at_once`. Whether another
    /// certificate is in use now, and which files could not be used.
    pub(super) fn look(&mut self, at_once: bool) -> (bool, Vec<String>) {
        let (mut has_changed, mut complaints) = (false, Vec::new());
        for (files, pair) in &mut self.pairs {
            let stamp = Stamp::of(files);
            let is_settled = std::mem::replace(&mut pair.seen, stamp) == stamp;
            if stamp == pair.read || !(is_settled || at_once) {
                continue;
            }
            pair.read = stamp;
            match Certificate::load(files) {
                Ok(certificate) => {
                    tracing::info!(certificate = %files.certificate.display(), "a new certificate is in use");
                    pair.certificate = Arc::new(certificate);
                    has_changed = true;
                }
                Err(why) => complaints.push(why),
            }
        }
        (has_changed, complaints)
    }
}

impl Runner {
    /// Whether certificates are in use that were not.
    pub(super) fn look_at_certificates(&mut self, at_once: bool) -> bool {
        let (has_changed, complaints) = self.certificates.look(at_once);
        for why in complaints {
            tracing::warn!("the certificate before stays in use: {why}");
        }
        if has_changed {
            self.look_at_fronts();
            self.publish_snapshot();
        }
        has_changed
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::file;
    use crate::tls::testing::{Files, issue};

    fn apps(files: &Tls) -> Vec<App> {
        let Tls { certificate, key } = files;
        let text = format!(
            "[[app]]\nname = \"a\"\nlisten = [\"[::]:443\"]\ncommand = [\"sh\"]\ntls = {{ certificate = {certificate:?}, key = {key:?} }}\n"
        );
        file::parse(&text, "homing.toml", std::path::Path::new("/")).unwrap_or_else(|errors| panic!("{errors}")).apps
    }

    #[test]
    fn a_new_pair_is_used_when_both_files_are_there_and_a_broken_one_is_told_once() {
        let files = Files::new(&issue(&["old"]));
        let apps = apps(&files.tls());
        let mut certificates = Certificates::new().unwrap();
        assert_eq!(certificates.fit(&apps), Vec::<String>::new());
        let names = |certificates: &Certificates| certificates.of(&apps[0]).unwrap().names.clone();
        assert_eq!(certificates.look(false), (false, vec![]));

        let new = issue(&["new"]);
        fs::write(files.tls().certificate, &new.certificate).unwrap();
        assert_eq!(certificates.look(false), (false, vec![]), "its key may be on its way");
        files.write(&new);
        assert_eq!(certificates.look(false), (false, vec![]));
        assert_eq!(certificates.look(false), (true, vec![]));
        assert_eq!(names(&certificates), ["new".to_owned()].into());

        fs::write(files.tls().key, issue(&["new"]).key).unwrap();
        certificates.look(false);
        let (has_changed, told) = certificates.look(false);
        assert!(!has_changed && told.len() == 1 && told[0].contains("is not the key of"), "{told:?}");
        assert_eq!(certificates.look(false), (false, vec![]), "once is enough");
        assert_eq!(names(&certificates), ["new".to_owned()].into(), "what was there stays");
        files.write(&issue(&["newest"]));
        assert_eq!(certificates.look(true), (true, vec![]), "asked to, at once");
    }
}
