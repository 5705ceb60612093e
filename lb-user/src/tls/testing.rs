//! Certificates for tests, signed by themselves, valid for a month around now.

use std::fs;
use std::time::SystemTime;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;

use crate::config::Tls;

/// A certificate and its key, as they stand in files.
pub struct Pair {
    pub certificate: String,
    pub key: String,
    pub der: CertificateDer<'static>,
}

pub fn issue(names: &[&str]) -> Pair {
    let key = KeyPair::generate().expect("a key");
    let mut params =
        CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).expect("names");
    let month = std::time::Duration::from_secs(30 * 24 * 60 * 60);
    (params.not_before, params.not_after) = ((SystemTime::now() - month).into(), (SystemTime::now() + month).into());
    let certificate = params.self_signed(&key).expect("signed");
    Pair { certificate: certificate.pem(), key: key.serialize_pem(), der: certificate.der().clone() }
}

/// A pair in a directory of its own.
pub struct Files(tempfile::TempDir);

impl Files {
    pub fn new(pair: &Pair) -> Self {
        let files = Self(tempfile::tempdir().expect("a directory"));
        files.write(pair);
        files
    }

    pub fn write(&self, pair: &Pair) {
        let Tls { certificate, key } = self.tls();
        fs::write(certificate, &pair.certificate).expect("written");
        fs::write(key, &pair.key).expect("written");
    }

    pub fn tls(&self) -> Tls {
        Tls { certificate: self.0.path().join("cert.pem"), key: self.0.path().join("key.pem") }
    }
}
