//! Maglev consistent hashing (Eisenbud et al., NSDI 2016, section 3.4) and the change from one ring to the next.

use alloc::vec;
use alloc::vec::Vec;

use crate::abi::{BackendId, Slot};
use crate::hash::finalise;

/// Ring sizes, all prime. The smallest is fair to within about one per cent for the workers of one machine,
/// the largest is Maglev's own for a hundred hosts.
const RING_SIZES: [u32; 9] = [509, 1_021, 2_039, 4_093, 8_191, 16_381, 32_749, 65_521, 65_537];

/// The largest ring.
pub const RING_LEN_MAX: u32 = RING_SIZES[RING_SIZES.len() - 1];

/// Slots per backend that keep the shares of the ring close to the weights.
const SLOTS_PER_BACKEND: u32 = 100;

/// A member of a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Stable name of the member, hashed: the worker, not its generation, so that a restarted worker gets its
    /// old slots back.
    pub name: u64,
    pub backend: BackendId,
    /// Relative share; 0 takes no slot.
    pub weight: u32,
}

/// The ring size for up to `backends_max` members.
pub fn ring_len(backends_max: u32) -> u32 {
    let wanted = backends_max.saturating_mul(SLOTS_PER_BACKEND);
    RING_SIZES.into_iter().find(|&len| len >= wanted).unwrap_or(RING_LEN_MAX)
}

/// Fills a ring of `len` slots (a prime, 2 or more). Without members every slot is [`BackendId::NONE`].
pub fn fill(len: u32, members: &[Member]) -> Vec<BackendId> {
    struct Walk {
        backend: BackendId,
        position: u32,
        skip: u32,
        weight: u32,
        credit: u32,
    }
    let mut ring = vec![BackendId::NONE; len as usize];
    let weight_max = members.iter().map(|m| m.weight).max().unwrap_or(0);
    let mut walks: Vec<Walk> = members
        .iter()
        .filter(|member| member.weight > 0)
        .map(|member| Walk {
            backend: member.backend,
            position: (finalise(member.name) % u64::from(len)) as u32,
            skip: (finalise(member.name ^ 0x9e37_79b9_7f4a_7c15) % u64::from(len - 1)) as u32 + 1,
            weight: member.weight,
            credit: 0,
        })
        .collect();
    if walks.is_empty() {
        return ring;
    }
    let mut filled = 0;
    loop {
        for walk in &mut walks {
            // A member takes a turn each time its credit reaches the heaviest weight.
            walk.credit += walk.weight;
            if walk.credit < weight_max {
                continue;
            }
            walk.credit -= weight_max;
            while !ring[walk.position as usize].is_none() {
                walk.position = (walk.position + walk.skip) % len;
            }
            ring[walk.position as usize] = walk.backend;
            filled += 1;
            if filled == len {
                return ring;
            }
        }
    }
}

/// The next ring after `old`, with every slot that changes hands marked as in transition. A slot that already
/// was in transition stays so: its bindings may still name an owner before the last.
pub fn succeed(old: &[Slot], owners: &[BackendId]) -> Vec<Slot> {
    owners
        .iter()
        .enumerate()
        .map(|(index, &current)| {
            let before = old.get(index).copied().unwrap_or_default();
            let previous =
                if before.current == current || before.current.is_none() { before.previous } else { before.current };
            Slot { current, previous }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(weights: &[u32]) -> Vec<Member> {
        weights
            .iter()
            .enumerate()
            .map(|(n, &weight)| Member { name: n as u64 + 1, backend: BackendId::new(n as u32, 1), weight })
            .collect()
    }

    fn share(ring: &[BackendId], member: &Member) -> usize {
        ring.iter().filter(|&&owner| owner == member.backend).count()
    }

    proptest! {
        #[test]
        fn no_holes_and_deterministic(weights in prop::collection::vec(1_u32..100, 1..40)) {
            let members = members(&weights);
            let ring = fill(ring_len(40), &members);
            prop_assert!(ring.iter().all(|owner| !owner.is_none()));
            prop_assert_eq!(ring, fill(ring_len(40), &members));
        }

        #[test]
        #[cfg_attr(miri, ignore = "65,537 slots, some minutes each")]
        fn shares_follow_the_weights(weights in prop::collection::vec(1_u32..20, 2..10)) {
            let members = members(&weights);
            let ring = fill(65_537, &members);
            let total: u32 = weights.iter().sum();
            for member in &members {
                let ideal = 65_537.0 * f64::from(member.weight) / f64::from(total);
                let got = share(&ring, member) as f64;
                prop_assert!((got - ideal).abs() <= ideal * 0.02 + 2.0, "share {got}, ideal {ideal}");
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "65,537 slots, some minutes each")]
    fn removing_one_of_a_hundred_moves_at_most_two_per_cent_of_the_others_slots() {
        let all = members(&[1; 100]);
        let before = fill(65_537, &all);
        let after = fill(65_537, &all[1..]);
        let others = before.iter().filter(|&&owner| owner != all[0].backend).count();
        let moved = before.iter().zip(&after).filter(|&(&was, &is)| was != all[0].backend && was != is).count();
        assert!(moved * 50 <= others, "{moved} of {others} slots of the other backends moved");
    }

    #[test]
    fn a_restarted_worker_gets_its_old_slots_back() {
        let mut all = members(&[1; 4]);
        let before = fill(509, &all);
        all[2].backend = BackendId::new(2, 2);
        let after = fill(509, &all);
        let same = before.iter().zip(&after).all(|(was, is)| was.index() == is.index());
        assert!(same, "another generation of the same worker must own the same slots");
    }

    #[test]
    fn without_members_nobody_owns_a_slot() {
        assert!(fill(509, &[]).iter().all(|owner| owner.is_none()));
    }

    #[test]
    fn a_slot_stays_in_transition_through_several_changes() {
        let [a, b, c] = [BackendId::new(0, 1), BackendId::new(1, 1), BackendId::new(2, 1)];
        let first = succeed(&[], &[a]);
        assert_eq!(first, [Slot { current: a, previous: BackendId::NONE }]);
        let second = succeed(&first, &[b]);
        assert_eq!(second, [Slot { current: b, previous: a }]);
        let third = succeed(&second, &[c]);
        assert_eq!(third, [Slot { current: c, previous: b }]);
        let emptied = succeed(&third, &[BackendId::NONE]);
        assert_eq!(emptied, [Slot { current: BackendId::NONE, previous: c }]);
        let back = succeed(&emptied, &[c]);
        assert_eq!(back, [Slot { current: c, previous: c }]);
    }
}
