//! Who wants to be told of the programs' decisions, and what they are told.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use lb_common::tap::{Decision, TAPS_MAX, TapCounts, Taps};
use tokio::io::unix::AsyncFd;

use super::pod::Wire;
use super::{Datapath, InMap as _, TableError, Unavailable, typed};

/// The taps' maps.
pub(super) struct TapMaps {
    taps: Array<MapData, Wire<Taps>>,
    due: Array<MapData, u64>,
    counts: PerCpuArray<MapData, Wire<TapCounts>>,
    /// Until somebody reads them.
    decisions: Option<RingBuf<MapData>>,
}

impl TapMaps {
    pub(super) fn take(ebpf: &mut aya::Ebpf) -> Result<Self, Unavailable> {
        let mut taps: Array<MapData, Wire<Taps>> = typed(ebpf, "TAPS")?;
        // One that was killed may have left some; their time is over, or nearly.
        let closed = taps.set(0, Wire(Taps::default()), 0);
        closed.map_err(|error| Unavailable::Load(format!("map TAPS: {error}")))?;
        Ok(Self {
            taps,
            due: typed(ebpf, "TAP_DUE")?,
            counts: typed(ebpf, "TAP_COUNTS")?,
            decisions: Some(typed(ebpf, "DECISIONS")?),
        })
    }
}

impl Datapath {
    /// What the programs tell, and whom.
    pub fn set_taps(&mut self, taps: &Taps) -> Result<(), TableError> {
        self.tap_maps.taps.set(0, Wire(*taps), 0).in_map("TAPS")
    }

    /// The tap has told nothing yet.
    pub fn begin_tap(&mut self, tap: usize) -> Result<(), TableError> {
        self.tap_maps.due.set(tap as u32, 0, 0).in_map("TAP_DUE")
    }

    /// What taps have let by since the maps were made.
    pub fn tap_counts(&self) -> Result<[TapCounts; TAPS_MAX as usize], TableError> {
        let mut all = [TapCounts::default(); TAPS_MAX as usize];
        for (tap, sum) in (0..).zip(&mut all) {
            for Wire(counts) in self.tap_maps.counts.get(&tap, 0).in_map("TAP_COUNTS")?.iter() {
                sum.seen += counts.seen;
                sum.too_fast += counts.too_fast;
                sum.no_room += counts.no_room;
            }
        }
        Ok(all)
    }

    /// The decisions, for the one who reads them. `None`: somebody does, or the kernel does not say when there are some.
    pub fn decisions(&mut self) -> Option<Decisions> {
        let ring = self.tap_maps.decisions.take()?;
        let fd = ring.as_fd().try_clone_to_owned().ok()?;
        Some(Decisions { ring, readable: crate::sys::watch_readable(fd).ok()? })
    }
}

/// The ring buffer's reading end.
pub struct Decisions {
    ring: RingBuf<MapData>,
    readable: AsyncFd<OwnedFd>,
}

impl Decisions {
    /// Waits until there are some, and takes them all.
    ///
    /// # Errors
    /// When the runtime is ending.
    pub async fn next(&mut self, mut take: impl FnMut(&Decision)) -> std::io::Result<()> {
        let mut ready = self.readable.readable().await?;
        while let Some(record) = self.ring.next() {
            if let Some(Wire(decision)) = Wire::read(&record) {
                take(&decision);
            }
        }
        ready.clear_ready();
        Ok(())
    }
}
