//! Listeners to decisions (`homing trace --live`): let in, kept open in the kernel while they are there, told what they miss.

use std::sync::Arc;
use std::time::Instant;

use lb_common::addr::Addr;
use lb_common::affinity;
use lb_common::tap::{EVERY_APP, TAP_OPEN_NS, TAPS_MAX, Tap};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::runner::{Kernel, Runner};
use crate::admin::report::LiveQuery;
use crate::admin::unknown_app;
use crate::bindings::monotonic_ns;
use crate::datapath::TableError;
use crate::live::{Listening, Live};
use crate::routing::Snapshot;
use crate::trouble::Trouble;

/// Everybody who listens, and who reads for them what the kernel's programs decide.
pub(super) struct Listeners {
    live: Live,
    /// Dropped, it ends.
    _reader: JoinSet<()>,
    /// The programs were told of some.
    is_tapped: bool,
    /// They could not be.
    trouble: Trouble,
}

impl Listeners {
    pub(super) fn new(live: Live, kernel: &mut Kernel, snapshots: watch::Receiver<Arc<Snapshot>>) -> Self {
        let mut reader = JoinSet::new();
        if let Some(mut decisions) = kernel.datapath().and_then(|datapath| datapath.decisions()) {
            let live = live.clone();
            reader.spawn(async move {
                let tell = |decision: &_| live.decided(&snapshots.borrow(), decision);
                while decisions.next(tell).await.is_ok() {}
            });
        }
        Self { live, _reader: reader, is_tapped: false, trouble: Trouble::default() }
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        // Whoever takes over knows nothing of them.
        self.live.end();
    }
}

impl Runner {
    /// # Errors
    /// Why nobody is let in, in words.
    pub(super) fn listen(&mut self, query: &LiveQuery) -> Result<Listening, String> {
        let app = query.app.as_deref().map(|name| {
            let named = |app: &super::App| app.spec.name == name && !app.removed;
            let place = self.state.apps.iter().position(named);
            place.ok_or_else(|| unknown_app(name, self.state.apps.iter().map(|app| app.spec.name.as_str())))
        });
        let (app, (client, bits)) = match app.transpose()? {
            None => (EVERY_APP, query.client.map_or((Addr::default(), 0), |address| (address.into(), 128))),
            Some(place) => {
                let service = &self.fixed[place].service;
                let client = query.client.map_or((Addr::default(), 0), |address| {
                    let bits = if Addr::from(address).is_v4() { service.v4_bits } else { service.v6_bits };
                    (affinity::client_of(service, address.into()), bits.into())
                });
                (service.app, client)
            }
        };
        let counts = match self.kernel.datapath().map(|datapath| datapath.tap_counts()) {
            None => Default::default(),
            Some(counts) => counts.map_err(|error| error.to_string())?,
        };
        let tap = Tap::new(app, client, bits, query.sample.max(1), query.rate.max(1));
        let Some((place, listening)) = self.listeners.live.listen(tap, &counts) else {
            return Err(format!("{TAPS_MAX} listen already, and no more may at once; end another homing trace --live"));
        };
        if let Some(Err(error)) = self.kernel.datapath().map(|datapath| datapath.begin_tap(place)) {
            return Err(error.to_string());
        }
        self.open_taps().map_err(|error| error.to_string())?;
        Ok(listening)
    }

    /// Keeps the taps of those who are there open, and closes the others'.
    pub(super) fn look_at_listeners_to_decisions(&mut self) {
        if !self.listeners.is_tapped && !self.listeners.live.is_listening() {
            return;
        }
        match self.open_taps() {
            Ok(()) => drop(self.listeners.trouble.is_over()),
            Err(error) if self.listeners.trouble.is_news(Instant::now()) => {
                tracing::warn!(%error, "who follows decisions is not told of the kernel's");
            }
            Err(_) => {}
        }
        let counts = self.kernel.datapath().and_then(|datapath| datapath.tap_counts().ok()).unwrap_or_default();
        self.listeners.live.tick(&counts);
    }

    fn open_taps(&mut self) -> Result<(), TableError> {
        let taps = self.listeners.live.taps(monotonic_ns() + TAP_OPEN_NS);
        self.listeners.is_tapped = taps.until_ns != 0;
        self.kernel.datapath().map_or(Ok(()), |datapath| datapath.set_taps(&taps))
    }
}
