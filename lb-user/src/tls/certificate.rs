//! A certificate chain and its key, read from PEM files and found to belong together.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use webpki::{EndEntityCert, KeyUsage};

use crate::config::{Host, Tls};

/// Far beyond the longest chain; a log or a device given by mistake is refused rather than read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A pair that can be served with.
#[derive(Debug)]
pub struct Certificate {
    pub key: Arc<CertifiedKey>,
    /// The names that clients accept it for, in lower case, with wildcards.
    pub names: BTreeSet<String>,
}

/// What the clock says of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    Valid,
    /// Within the time that was asked for.
    ExpiresSoon,
    Expired,
    NotYet,
}

/// Which files these are: another one, or one that was written to, has another stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp([Option<FileStamp>; 2]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl Stamp {
    pub fn of(files: &Tls) -> Self {
        let stamp = |path: &Path| {
            let metadata = fs::metadata(path).ok()?;
            Some(FileStamp { modified: metadata.modified().ok(), bytes: metadata.len(), inode: metadata.ino() })
        };
        Self([stamp(&files.certificate), stamp(&files.key)])
    }
}

impl Certificate {
    /// # Errors
    /// What is wrong, with which file.
    pub fn load(files: &Tls) -> Result<Self, String> {
        let chain = Self::chain(&files.certificate)?;
        let key = Self::private_key(&files.key)?;
        let Tls { certificate: certificate_path, key: key_path } = files;
        let provider = rustls::crypto::ring::default_provider();
        let key = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("`{}` is not the key of `{}`; give the pair", key_path.display(), certificate_path.display())
            }
            error => format!("`{}` with `{}`: {error}", certificate_path.display(), key_path.display()),
        })?;
        let leaf = key.end_entity_cert().map_err(|error| error.to_string())?;
        let leaf = EndEntityCert::try_from(leaf).map_err(|error| {
            format!("`{}` begins with no certificate of a server: {error}", certificate_path.display())
        })?;
        let names = leaf.valid_dns_names().map(str::to_ascii_lowercase).collect();
        Ok(Self { key: Arc::new(key), names })
    }

    /// # Errors
    /// Why there is none in the file.
    pub fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
        let pem = read(path)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        match chain {
            Ok(chain) if !chain.is_empty() => Ok(chain),
            Ok(_) => Err(format!("`{}` has no certificate in it (PEM, BEGIN CERTIFICATE)", path.display())),
            Err(error) => Err(format!("`{}` is not PEM: {error}", path.display())),
        }
    }

    /// # Errors
    /// Why there is none in the file.
    pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
        let pem = read(path)?;
        if pem.windows(9).any(|bytes| bytes == b"ENCRYPTED") {
            return Err(format!(
                "`{}` has a password; homing cannot ask for it: take it off (openssl pkey)",
                path.display()
            ));
        }
        PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|error| format!("`{}` has no private key in it (PEM, BEGIN PRIVATE KEY): {error}", path.display()))
    }

    /// At `now`, and for `soon` from then on.
    pub fn validity(&self, now: SystemTime, soon: Duration) -> Validity {
        match (self.judged(now), self.judged(now + soon)) {
            (Some(webpki::Error::CertExpired { .. }), _) => Validity::Expired,
            (Some(webpki::Error::CertNotValidYet { .. }), _) => Validity::NotYet,
            (_, Some(webpki::Error::CertExpired { .. })) => Validity::ExpiresSoon,
            _ => Validity::Valid,
        }
    }

    /// What a client that trusts nobody would hold against it: its time is looked at first.
    fn judged(&self, at: SystemTime) -> Option<webpki::Error> {
        let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let leaf = EndEntityCert::try_from(self.key.end_entity_cert().ok()?).ok()?;
        let at = UnixTime::since_unix_epoch(since_epoch);
        leaf.verify_for_usage(&[], &[], &[], at, KeyUsage::server_auth(), None, None).err()
    }

    /// Whether clients that ask for the host accept it.
    pub fn covers(&self, host: &Host) -> bool {
        match host {
            Host::Exact(name) => self.fits(name),
            Host::Below(_) => self.names.contains(&host.to_string()),
        }
    }

    /// Whether it is for this name, by itself or by a wildcard, which stands for one label (RFC 6125 section 6.4.3).
    pub fn fits(&self, name: &str) -> bool {
        let wildcard = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        self.names.contains(name) || wildcard.is_some_and(|wildcard| self.names.contains(&wildcard))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let opened = fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    match opened {
        Ok(_) if bytes.len() as u64 > FILE_BYTES_MAX => Err(format!("`{}` is too large for PEM", path.display())),
        Ok(_) => Ok(bytes),
        Err(error) => Err(format!("`{}` cannot be read: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Files, issue};
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn a_pair_is_read_with_its_names_and_its_time() {
        let files = Files::new(&issue(&["Sales.example.org", "*.b.org"]));
        let certificate = Certificate::load(&files.tls()).unwrap();
        assert_eq!(certificate.names, ["*.b.org", "sales.example.org"].map(str::to_owned).into());
        for (host, covered) in [
            (Host::Exact("sales.example.org".into()), true),
            (Host::Exact("x.b.org".into()), true),
            (Host::Exact("y.x.b.org".into()), false),
            (Host::Exact("b.org".into()), false),
            (Host::Below("b.org".into()), true),
            (Host::Below("example.org".into()), false),
        ] {
            assert_eq!(certificate.covers(&host), covered, "{host}");
        }
        let now = SystemTime::now();
        assert_eq!(certificate.validity(now, DAY), Validity::Valid);
        assert_eq!(certificate.validity(now, 100 * DAY), Validity::ExpiresSoon);
        assert_eq!(certificate.validity(now + 100 * DAY, DAY), Validity::Expired);
        assert_eq!(certificate.validity(now - 100 * DAY, DAY), Validity::NotYet);
    }

    #[test]
    fn what_cannot_be_served_with_is_told_so() {
        let told = |files: &Files| Certificate::load(&files.tls()).expect_err("it is wrong");
        let files = Files::new(&issue(&["a"]));
        let other = issue(&["a"]);
        fs::write(&files.tls().key, other.key).unwrap();
        assert!(told(&files).contains("key.pem` is not the key of `"), "{}", told(&files));
        fs::write(&files.tls().key, "-----BEGIN ENCRYPTED PRIVATE KEY-----\n").unwrap();
        assert!(told(&files).contains("has a password"), "{}", told(&files));
        fs::write(&files.tls().key, "").unwrap();
        assert!(told(&files).contains("has no private key in it"), "{}", told(&files));
        fs::write(&files.tls().certificate, "nothing").unwrap();
        assert!(told(&files).contains("has no certificate in it"), "{}", told(&files));
        fs::write(&files.tls().certificate, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
        assert!(told(&files).contains("cert.pem` is not PEM: "), "{}", told(&files));
        fs::write(&files.tls().certificate, vec![b'a'; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(told(&files).contains("is too large for PEM"), "{}", told(&files));
        fs::remove_file(&files.tls().certificate).unwrap();
        assert!(told(&files).contains("cannot be read: No such file"), "{}", told(&files));
    }

    #[test]
    fn a_file_that_is_replaced_has_another_stamp() {
        let pair = issue(&["a"]);
        let files = Files::new(&pair);
        let tls = files.tls();
        let before = Stamp::of(&tls);
        assert_eq!(Stamp::of(&tls), before);
        let aside = tls.key.with_extension("new");
        fs::write(&aside, &pair.key).unwrap();
        fs::rename(&aside, &tls.key).unwrap();
        assert_ne!(Stamp::of(&tls), before);
    }
}
