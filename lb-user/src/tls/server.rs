//! What a TLS listener serves with: made once for a set of certificates, and replaced as a whole.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::Certificate;

/// In the order in which homing would have them.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The keys of session tickets: kept while homing runs, so that a client resumes after a certificate was renewed. They are
/// replaced every six hours.
#[derive(Clone, Debug)]
pub struct Tickets(Arc<dyn ProducesTickets>);

impl Tickets {
    /// # Errors
    /// When the system gives no random bytes.
    pub fn new() -> Result<Self, String> {
        rustls::crypto::ring::Ticketer::new().map(Self).map_err(|error| error.to_string())
    }
}

/// TLS 1.2 and 1.3 with these certificates; the first is for clients that name no host, or one that none is for.
pub fn server(certificates: &[Arc<Certificate>], tickets: &Tickets) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = versions
        .expect("the provider has ciphers for both versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ByName::new(certificates)));
    config.alpn_protocols = PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect();
    config.ticketer = Arc::clone(&tickets.0);
    Arc::new(config)
}

/// Certificates by the names that they are for.
#[derive(Debug)]
struct ByName {
    names: HashMap<String, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
}

impl ByName {
    fn new(certificates: &[Arc<Certificate>]) -> Self {
        let mut names = HashMap::new();
        for certificate in certificates {
            for name in &certificate.names {
                names.entry(name.clone()).or_insert_with(|| Arc::clone(&certificate.key));
            }
        }
        Self { names, first: certificates.first().map(|certificate| Arc::clone(&certificate.key)) }
    }

    fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let name = name.map(str::to_ascii_lowercase);
        let by_name = name.and_then(|name| {
            let wildcard = || name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
            self.names.get(&name).or_else(|| self.names.get(&wildcard()?)).map(Arc::clone)
        });
        by_name.or_else(|| self.first.clone())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Files, issue};
    use super::*;

    #[test]
    fn the_certificate_that_says_more_goes_first() {
        let load = |names: &[&str]| Arc::new(Certificate::load(&Files::new(&issue(names)).tls()).unwrap());
        let all = [load(&["a.org"]), load(&["*.b.org"]), load(&["x.b.org", "a.org"])];
        let by_name = ByName::new(&all);
        for (asked, expected) in [
            (Some("a.org"), 0),
            (Some("X.b.org"), 2),
            (Some("y.b.org"), 1),
            (Some("z.y.b.org"), 0),
            (Some("b.org"), 0),
            (Some("elsewhere"), 0),
            (None, 0),
        ] {
            let found = by_name.find(asked).unwrap();
            assert!(Arc::ptr_eq(&found, &all[expected].key), "{asked:?}");
        }
    }
}
