//! A certificate that nobody has signed but itself.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// `cert.pem` for this name and `key.pem` with its key, into this directory.
pub fn issue(directory: &Path, name: &str) {
    let certified = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    fs::write(directory.join("cert.pem"), certified.cert.pem()).expect("written");
    let key = directory.join("key.pem");
    fs::write(&key, certified.signing_key.serialize_pem()).expect("written");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("its mode is set");
}

/// For localhost, in a directory that is gone with the value.
pub struct Certificate(tempfile::TempDir);

impl Certificate {
    pub fn issue() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        issue(directory.path(), "localhost");
        Self(directory)
    }

    /// The table of an app that is shown with it.
    pub fn table(&self) -> String {
        let directory = self.0.path().display();
        format!("[app.tls]\ncertificate = \"{directory}/cert.pem\"\nkey = \"{directory}/key.pem\"\n")
    }
}
