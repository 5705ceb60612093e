//! The one hash that places clients on rings.

use crate::addr::Addr;

/// A keyed 64-bit mix of an address: MurmurHash3's finaliser (Appleby, public domain) over both halves.
///
/// The seed is secret per app, so that nobody outside can pick addresses that all land on one worker.
#[inline(always)]
pub const fn mix(seed: u64, address: Addr) -> u64 {
    finalise(finalise(seed ^ address.high) ^ address.low)
}

/// A hash that spreads flows and keeps no secret: of both halves and the ports at once.
#[inline(always)]
pub const fn flow(source: Addr, source_port: u16, destination_port: u16) -> u32 {
    let ports = (source_port as u64) << 48 | (destination_port as u64) << 32;
    (finalise(source.high.rotate_left(32) ^ source.low ^ ports) >> 32) as u32
}

/// The slot of a ring of `len` slots (1 to 2^32 - 1) that a hash falls into: multiply-shift, no division.
#[inline(always)]
pub const fn slot(hash: u64, len: u32) -> u32 {
    (((hash >> 32) * len as u64) >> 32) as u32
}

#[inline(always)]
pub(crate) const fn finalise(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_one_24_spread_evenly() {
        let mut slots = [0_u32; 4];
        for host in 0..=255 {
            let hash = mix(7, Addr::v4([10, 0, 0, host]));
            slots[slot(hash, 4) as usize] += 1;
        }
        assert!(slots.iter().all(|n| (40..=90).contains(n)), "256 neighbours over 4 slots: {slots:?}");
    }

    #[test]
    fn flows_of_one_client_spread_evenly() {
        let mut paths = [0_u32; 4];
        for port in 40_000..40_256 {
            paths[flow(Addr::v4([10, 0, 0, 1]), port, 80) as usize & 3] += 1;
        }
        assert!(paths.iter().all(|n| (40..=90).contains(n)), "256 flows over 4 paths: {paths:?}");
    }

    #[test]
    fn the_seed_changes_the_placement() {
        let moved = (0..=255)
            .filter(|&host| {
                let address = Addr::v4([10, 0, 0, host]);
                slot(mix(1, address), 4) != slot(mix(2, address), 4)
            })
            .count();
        assert!(moved > 128, "another seed must place most clients elsewhere, moved {moved} of 256");
    }
}
