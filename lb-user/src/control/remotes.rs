//! Remote hosts on control's behalf: asked again and again whether they answer, and known by one id while they do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::{Backend, BackendId, FORWARD_GUE, FORWARD_HTTP, FORWARD_IPIP, FORWARD_L2};
use lb_common::hash;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::launch::Message;
use super::state;
use crate::address::Address;
use crate::config::{self, Forward, SendProxy};
use crate::datapath;
use crate::routing::Load;
use crate::worker::probe::{self, Proof};

/// Between questions to a host that answers.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Between questions to one that does not.
const ASK_SILENT: Duration = Duration::from_secs(1);
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(3);
/// Where Linux's FOU module usually takes GUE.
const GUE_PORT: u32 = 6080;

/// A host that is watched. Dropping it ends the watch.
pub(super) struct Remote {
    pub(super) address: SocketAddr,
    /// As configured, or by the HTTP path where that cannot be.
    pub(super) forward: Forward,
    /// Why it cannot be.
    pub(super) obstacle: Option<String>,
    wanted: Forward,
    /// What a cookie names: the host, for as long as it has this address.
    pub(super) incarnation: u64,
    pub(super) load: Arc<Load>,
    watcher: AbortHandle,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Remote {
    /// Watches a host; what is seen arrives as messages.
    pub(super) fn watch(
        config: &config::Backend,
        health: &config::Health,
        send_proxy: Option<SendProxy>,
        backend: BackendId,
        messages: mpsc::Sender<Message>,
    ) -> Self {
        let address = config.address;
        let (asked, proof) = (Address::from(address), Proof::of(health, send_proxy));
        let watcher = tokio::spawn(async move {
            loop {
                let (message, pause) = match probe::ready(&asked, &proof, PATIENCE).await {
                    Ok(()) => (Message::Answers { backend }, ASK_AGAIN),
                    Err(expired) => (Message::FellSilent { backend, reason: expired.last.to_string() }, ASK_SILENT),
                };
                if messages.send(message).await.is_err() {
                    return;
                }
                tokio::time::sleep(pause).await;
            }
        });
        Self {
            address,
            forward: config.forward,
            obstacle: None,
            wanted: config.forward,
            incarnation: name_of(address),
            load: Arc::default(),
            watcher: watcher.abort_handle(),
        }
    }

    /// As the datapath knows it. Without a way to the host, or with one that XDP cannot take, its packets go by the HTTP
    /// path.
    pub(super) fn backend(&mut self, id: BackendId, obstacle: Option<String>) -> Backend {
        let source = datapath::source_towards(self.address.ip()).map_err(|error| format!("no way there: {error}"));
        let source =
            source.and_then(|source| obstacle.filter(|_| self.wanted != Forward::Http).map_or(Ok(source), Err));
        match source {
            Ok(source) => {
                self.forward = self.wanted;
                self.obstacle = None;
                let (address, source) = (self.address.ip().into(), source.into());
                Backend { address, source, id, forward: self.forward_code(), gue_port: GUE_PORT, reserved: 0 }
            }
            Err(obstacle) => {
                tracing::warn!(backend = %self.address, %obstacle, "the HTTP path will forward to this backend");
                self.forward = Forward::Http;
                self.obstacle = Some(format!("{obstacle}; the HTTP path forwards"));
                Backend { id, forward: FORWARD_HTTP, ..Backend::default() }
            }
        }
    }

    fn forward_code(&self) -> u32 {
        match self.forward {
            Forward::Http => FORWARD_HTTP,
            Forward::L2 => FORWARD_L2,
            Forward::Ipip => FORWARD_IPIP,
            Forward::Gue => FORWARD_GUE,
        }
    }
}

/// The host as a member of rings: the same wherever it is known by this address.
pub(super) fn member(config: &config::Backend) -> state::Remote {
    state::Remote { name: name_of(config.address), weight: config.weight }
}

fn name_of(address: SocketAddr) -> u64 {
    // Apart from the small numbers that processes have as names.
    hash::mix(u64::from(address.port()), address.ip().into()) | (1 << 63)
}
