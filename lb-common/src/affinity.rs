//! `choose`: which backend a client's new connection goes to, and which rule said so.

use crate::abi::{BackendId, Binding, BindingKey, SERVICE_AUTO, SERVICE_HTTP_ONLY, Service, Slot};
use crate::addr::Addr;
use crate::hash;

/// What `choose` reads. Implemented by the maps in the kernel, and by plain memory in user space.
pub trait Tables {
    /// A slot of an app's ring; `None` when the app has no ring.
    fn slot(&self, app: u32, index: u32) -> Option<Slot>;
    fn binding(&self, key: &BindingKey) -> Option<Binding>;
    /// Whether that very generation of the backend can take connections of its bound clients.
    fn is_live(&self, backend: BackendId) -> bool;
    /// Seconds of CLOCK_MONOTONIC, coarse. Asked only when a binding is judged.
    fn now_s(&self) -> u32;
    /// The backend that the client is opening a connection to, while its slot is in transition and it is not bound
    /// yet. Only [`follow`] asks.
    fn opening(&self, _key: &BindingKey) -> BackendId {
        BackendId::NONE
    }
    /// Whether the client's users are told apart by cookie. Asked only with [`SERVICE_AUTO`].
    fn is_promoted(&self, _key: &BindingKey) -> bool {
        false
    }
}

/// Where a connection goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The slot of the ring is stable, or the client has no live binding: the slot's owner.
    Ring(BackendId),
    /// The slot is in transition and the client is bound.
    Bound(BackendId),
    /// The HTTP path decides: affinity is by cookie.
    HttpOnly,
    /// The HTTP path decides: the client is promoted.
    Promoted,
    /// The HTTP path holds the request: no worker owns the slot.
    NoWorker,
}

impl Choice {
    #[inline(always)]
    pub const fn backend(self) -> Option<BackendId> {
        match self {
            Self::Ring(backend) | Self::Bound(backend) => Some(backend),
            Self::HttpOnly | Self::Promoted | Self::NoWorker => None,
        }
    }
}

/// The client that an address belongs to, for a service: its prefix.
#[inline(always)]
pub const fn client_of(service: &Service, address: Addr) -> Addr {
    let bits = if address.is_v4() { service.v4_bits } else { service.v6_bits };
    address.mask(bits as u32)
}

/// The slot of the service's ring that a client falls into.
#[inline(always)]
pub const fn slot_of(service: &Service, client: Addr) -> u32 {
    hash::slot(hash::mix(service.seed, client), service.ring_len)
}

/// Whether the client's slot is changing hands.
#[inline(always)]
pub fn is_in_transition<T: Tables>(tables: &T, service: &Service, client: Addr) -> bool {
    tables.slot(service.app, slot_of(service, client)).is_some_and(|slot| !slot.previous.is_none())
}

/// Whether a binding still holds: its backend lives, and it has a connection or was seen recently enough.
#[inline(always)]
pub fn is_fresh(service: &Service, binding: &Binding, now_s: u32) -> bool {
    binding.connections > 0 || now_s.wrapping_sub(binding.seen_s) < service.affinity_s
}

/// The one decision of homing. `address` is the peer's, unmasked.
///
/// A stable slot is decided by the ring alone and reads no table that grows with clients.
#[inline(always)]
pub fn choose<T: Tables>(tables: &T, service: &Service, address: Addr) -> Choice {
    if service.flags & SERVICE_HTTP_ONLY != 0 {
        return Choice::HttpOnly;
    }
    let client = client_of(service, address);
    let key = BindingKey { client, app: service.app, reserved: 0 };
    if service.flags & SERVICE_AUTO != 0 && tables.is_promoted(&key) {
        return Choice::Promoted;
    }
    let Some(slot) = tables.slot(service.app, slot_of(service, client)) else {
        return Choice::NoWorker;
    };
    if !slot.previous.is_none()
        && let Some(binding) = tables.binding(&key)
        && tables.is_live(binding.backend)
        && is_fresh(service, &binding, tables.now_s())
    {
        return Choice::Bound(binding.backend);
    }
    if slot.current.is_none() {
        return Choice::NoWorker;
    }
    Choice::Ring(slot.current)
}

/// A binding of a remote backend's client is stamped again when the stamp is older than this, in seconds.
pub const REFRESH_S: u32 = 30;

/// Where [`follow`] sends a packet of an open flow, if it is a plain case with nothing to write down: the slot is stable, or the
/// client is bound and was seen just now. Whether that backend lives is for the caller to see. `None`: not so plain.
#[inline(always)]
pub fn settled<T: Tables>(tables: &T, service: &Service, address: Addr) -> Option<BackendId> {
    let client = client_of(service, address);
    let slot = tables.slot(service.app, slot_of(service, client))?;
    if slot.previous.is_none() {
        return (!slot.current.is_none()).then_some(slot.current);
    }
    let binding = tables.binding(&BindingKey { client, app: service.app, reserved: 0 })?;
    let now_s = tables.now_s();
    let was_just_seen = now_s.wrapping_sub(binding.seen_s) < REFRESH_S;
    (was_just_seen && is_fresh(service, &binding, now_s)).then_some(binding.backend)
}

/// Where a packet of an open flow goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// The slot is stable: its owner.
    Ring(BackendId),
    /// The slot is in transition and the client is bound.
    Bound(BackendId),
    /// The slot is in transition, and the client is opening its first connection to this backend.
    Opening(BackendId),
    /// The slot is in transition, and nothing is known of the client: it was there before.
    Previous(BackendId),
    /// No backend owns the slot.
    NoWorker,
}

impl Flow {
    #[inline(always)]
    pub const fn backend(self) -> Option<BackendId> {
        match self {
            Self::Ring(backend) | Self::Bound(backend) | Self::Opening(backend) | Self::Previous(backend) => {
                Some(backend)
            }
            Self::NoWorker => None,
        }
    }
}

/// Where a packet of an open flow goes when nothing but addresses tells: to remote backends, whose connections this
/// machine does not hold.
///
/// As [`choose`], but for who is not bound while the slot is in transition: that client was with the previous owner
/// when the slot changed hands, unless it is just opening its first connection to the new one.
#[inline(always)]
pub fn follow<T: Tables>(tables: &T, service: &Service, address: Addr) -> Flow {
    let client = client_of(service, address);
    let Some(slot) = tables.slot(service.app, slot_of(service, client)) else {
        return Flow::NoWorker;
    };
    if !slot.previous.is_none() {
        let key = BindingKey { client, app: service.app, reserved: 0 };
        if let Some(binding) = tables.binding(&key)
            && tables.is_live(binding.backend)
            && is_fresh(service, &binding, tables.now_s())
        {
            return Flow::Bound(binding.backend);
        }
        let opening = tables.opening(&key);
        if !opening.is_none() && tables.is_live(opening) {
            return Flow::Opening(opening);
        }
        if tables.is_live(slot.previous) {
            return Flow::Previous(slot.previous);
        }
    }
    if slot.current.is_none() { Flow::NoWorker } else { Flow::Ring(slot.current) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const A: BackendId = BackendId::new(0, 1);
    const B: BackendId = BackendId::new(1, 1);

    struct Fixture {
        slots: std::vec::Vec<Slot>,
        bindings: HashMap<BindingKey, Binding>,
        live: std::vec::Vec<BackendId>,
        now_s: u32,
        opening: BackendId,
    }

    impl Tables for Fixture {
        fn slot(&self, _: u32, index: u32) -> Option<Slot> {
            self.slots.get(index as usize).copied()
        }
        fn binding(&self, key: &BindingKey) -> Option<Binding> {
            self.bindings.get(key).copied()
        }
        fn is_live(&self, backend: BackendId) -> bool {
            self.live.contains(&backend)
        }
        fn now_s(&self) -> u32 {
            self.now_s
        }
        fn opening(&self, _: &BindingKey) -> BackendId {
            self.opening
        }
    }

    const CLIENT: Addr = Addr::v4([192, 0, 2, 1]);

    fn service() -> Service {
        Service { ring_len: 1, v4_bits: 128, v6_bits: 64, affinity_s: 60, ..Service::default() }
    }

    fn bound(slot: Slot, to: BackendId, connections: u32, seen_s: u32, now_s: u32) -> Fixture {
        let key = BindingKey { client: CLIENT, app: 0, reserved: 0 };
        Fixture {
            slots: std::vec![slot],
            bindings: HashMap::from([(key, Binding { backend: to, connections, seen_s, reserved: 0 })]),
            live: std::vec![A, B],
            now_s,
            opening: BackendId::NONE,
        }
    }

    #[test]
    fn a_stable_slot_is_decided_by_the_ring_alone() {
        let tables = bound(Slot { current: A, previous: BackendId::NONE }, B, 1, 0, 0);
        assert_eq!(choose(&tables, &service(), CLIENT), Choice::Ring(A));
    }

    #[test]
    fn in_transition_a_bound_client_stays() {
        let tables = bound(Slot { current: A, previous: B }, B, 0, 100, 159);
        assert_eq!(choose(&tables, &service(), CLIENT), Choice::Bound(B));
    }

    #[test]
    fn in_transition_a_new_client_goes_to_the_owner() {
        let tables = bound(Slot { current: A, previous: B }, B, 1, 0, 0);
        assert_eq!(choose(&tables, &service(), Addr::v4([192, 0, 2, 2])), Choice::Ring(A));
    }

    #[test]
    fn an_idle_client_is_chosen_anew_after_the_timeout() {
        let tables = bound(Slot { current: A, previous: B }, B, 0, 100, 160);
        assert_eq!(choose(&tables, &service(), CLIENT), Choice::Ring(A));
    }

    #[test]
    fn an_open_connection_keeps_a_binding_beyond_the_timeout() {
        let tables = bound(Slot { current: A, previous: B }, B, 1, 100, 100_000);
        assert_eq!(choose(&tables, &service(), CLIENT), Choice::Bound(B));
    }

    #[test]
    fn a_binding_to_a_dead_generation_does_not_count() {
        let mut tables = bound(Slot { current: A, previous: B }, B, 1, 0, 0);
        tables.live = std::vec![A, BackendId::new(1, 2)];
        assert_eq!(choose(&tables, &service(), CLIENT), Choice::Ring(A));
    }

    #[test]
    fn a_draining_backend_without_successor_keeps_its_bound_clients_and_takes_no_others() {
        let tables = bound(Slot { current: BackendId::NONE, previous: B }, B, 0, 0, 1);
        assert_eq!(choose(&tables, &service(), CLIENT), Choice::Bound(B));
        assert_eq!(choose(&tables, &service(), Addr::v4([192, 0, 2, 2])), Choice::NoWorker);
    }

    #[test]
    fn cookie_affinity_leaves_everything_to_the_http_path() {
        let tables = bound(Slot { current: A, previous: BackendId::NONE }, A, 1, 0, 0);
        let service = Service { flags: SERVICE_HTTP_ONLY, ..service() };
        assert_eq!(choose(&tables, &service, CLIENT), Choice::HttpOnly);
    }

    #[test]
    fn one_ipv6_64_is_one_client() {
        let mut wide = service();
        wide.ring_len = 65_537;
        let one = Addr::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
        let other = Addr::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9]);
        assert_eq!(client_of(&wide, one), client_of(&wide, other));
        assert_eq!(slot_of(&wide, client_of(&wide, one)), slot_of(&wide, client_of(&wide, other)));
    }

    /// Nobody is bound.
    fn unbound(slot: Slot) -> Fixture {
        Fixture { bindings: HashMap::new(), ..bound(slot, B, 0, 0, 0) }
    }

    #[test]
    fn an_open_flow_of_nobody_bound_stays_with_the_previous_owner() {
        let tables = unbound(Slot { current: A, previous: B });
        assert_eq!(follow(&tables, &service(), CLIENT), Flow::Previous(B));
        assert_eq!(choose(&tables, &service(), CLIENT), Choice::Ring(A), "a new connection goes to the new owner");
    }

    #[test]
    fn a_client_that_just_opened_to_the_new_owner_is_followed_there() {
        let tables = Fixture { opening: A, ..unbound(Slot { current: A, previous: B }) };
        assert_eq!(follow(&tables, &service(), CLIENT), Flow::Opening(A));
    }

    #[test]
    fn a_dead_previous_owner_keeps_nobody() {
        let tables = Fixture { live: std::vec![A], ..unbound(Slot { current: A, previous: B }) };
        assert_eq!(follow(&tables, &service(), CLIENT), Flow::Ring(A));
    }

    #[test]
    fn a_stable_slot_is_followed_by_the_ring_alone() {
        let tables = bound(Slot { current: A, previous: BackendId::NONE }, B, 1, 0, 0);
        assert_eq!(follow(&tables, &service(), CLIENT), Flow::Ring(A));
        assert_eq!(settled(&tables, &service(), CLIENT), Some(A));
    }

    #[test]
    fn nothing_is_settled_without_an_owner_or_for_somebody_unknown_in_transition() {
        let slot = |current, previous| unbound(Slot { current, previous });
        assert_eq!(settled(&slot(BackendId::NONE, BackendId::NONE), &service(), CLIENT), None);
        assert_eq!(settled(&slot(A, B), &service(), CLIENT), None);
    }

    #[test]
    fn in_transition_a_bound_client_is_settled_until_its_stamp_wants_renewal() {
        let at = |now_s| bound(Slot { current: A, previous: B }, B, 0, 100, now_s);
        assert_eq!(settled(&at(100 + REFRESH_S - 1), &service(), CLIENT), Some(B));
        assert_eq!(settled(&at(100 + REFRESH_S), &service(), CLIENT), None);
        let hasty = Service { affinity_s: 10, ..service() };
        assert_eq!(settled(&at(109), &hasty, CLIENT), Some(B));
        assert_eq!(settled(&at(110), &hasty, CLIENT), None, "it is not bound any more");
    }
}
