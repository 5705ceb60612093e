//! What `choose`, `follow` and `settled` promise of any tables: the order of the rules, and that a client is its prefix.

use std::collections::HashMap;

use lb_common::abi::{BackendId, Binding, BindingKey, SERVICE_AUTO, SERVICE_HTTP_ONLY, Service, Slot};
use lb_common::addr::Addr;
use lb_common::affinity::{Choice, Flow, Tables, choose as chosen, client_of, follow, is_fresh, settled, slot_of};

use super::Input;

#[derive(Default)]
struct Memory {
    slots: Vec<Slot>,
    bindings: HashMap<BindingKey, Binding>,
    live: Vec<BackendId>,
    promoted: Vec<BindingKey>,
    opening: Option<(BindingKey, BackendId)>,
    now_s: u32,
}

impl Tables for Memory {
    fn slot(&self, app: u32, index: u32) -> Option<Slot> {
        (app == APP).then(|| self.slots.get(index as usize).copied())?
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
    fn opening(&self, key: &BindingKey) -> BackendId {
        self.opening.filter(|(opener, _)| opener == key).map_or(BackendId::NONE, |(_, backend)| backend)
    }
    fn is_promoted(&self, key: &BindingKey) -> bool {
        self.promoted.contains(key)
    }
}

const APP: u32 = 3;

/// Few backends, so that they meet.
fn backend(input: &mut Input<'_>) -> BackendId {
    match input.byte() % 6 {
        0 => BackendId::NONE,
        number => BackendId::new(u32::from(number) % 3, u32::from(number) / 3 + 1),
    }
}

fn address(input: &mut Input<'_>) -> Addr {
    if input.byte() & 1 == 0 {
        return Addr::v4(input.number().to_be_bytes());
    }
    let [high, low] = [input.number(), input.number()].map(u64::from);
    Addr { high: high << 32 | low, low: u64::from(input.number()) << 32 | u64::from(input.number()) }
}

pub fn choose(bytes: &[u8]) {
    let mut input = Input(bytes);
    let service = Service {
        seed: u64::from(input.number()),
        app: APP - u32::from(input.byte() == 255),
        ring_len: u32::from(input.byte() % 16) + 1,
        flags: u32::from(input.byte()) & (SERVICE_AUTO | SERVICE_HTTP_ONLY),
        v4_bits: 96 + u16::from(input.byte() % 33),
        v6_bits: u16::from(input.byte() % 129),
        affinity_s: input.number(),
        ..Service::default()
    };
    let peer = address(&mut input);
    let client = client_of(&service, peer);
    let key = BindingKey { client, app: service.app, reserved: 0 };
    let mut tables = Memory { now_s: input.number(), ..Memory::default() };
    for _ in 0..service.ring_len {
        let slot = Slot { current: backend(&mut input), previous: backend(&mut input) };
        tables.slots.push(slot);
    }
    tables.live = (0..input.byte() % 4).map(|_| backend(&mut input)).filter(|backend| !backend.is_none()).collect();
    while !input.is_empty() {
        let whose = if input.byte() & 1 == 0 { key } else { BindingKey { client: address(&mut input), ..key } };
        match input.byte() % 3 {
            0 => {
                let bound = Binding {
                    backend: backend(&mut input),
                    connections: u32::from(input.byte() % 2),
                    seen_s: input.number(),
                    reserved: 0,
                };
                tables.bindings.insert(whose, bound);
            }
            1 => tables.promoted.push(whose),
            _ => tables.opening = Some((whose, backend(&mut input))),
        }
    }
    assert_eq!(chosen(&tables, &service, peer), expected(&tables, &service, &key));
    assert_eq!(follow(&tables, &service, peer), followed(&tables, &service, &key));
    if let Some(backend) = settled(&tables, &service, peer).filter(|backend| tables.is_live(*backend)) {
        assert_eq!(
            follow(&tables, &service, peer).backend(),
            Some(backend),
            "what is settled is what a second look says"
        );
    }
    assert_eq!(chosen(&tables, &service, client), chosen(&tables, &service, peer), "a client is its prefix");
}

/// The rules, as `docs/ARCHITECTURE.md` has them.
fn expected(tables: &Memory, service: &Service, key: &BindingKey) -> Choice {
    let slot = tables.slot(service.app, slot_of(service, key.client));
    let bound = slot.filter(|slot| !slot.previous.is_none()).and_then(|_| held(tables, service, key));
    match (slot, bound) {
        _ if service.flags & SERVICE_HTTP_ONLY != 0 => Choice::HttpOnly,
        _ if service.flags & SERVICE_AUTO != 0 && tables.is_promoted(key) => Choice::Promoted,
        (_, Some(backend)) => Choice::Bound(backend),
        (Some(slot), None) if !slot.current.is_none() => Choice::Ring(slot.current),
        _ => Choice::NoWorker,
    }
}

fn followed(tables: &Memory, service: &Service, key: &BindingKey) -> Flow {
    let Some(slot) = tables.slot(service.app, slot_of(service, key.client)) else { return Flow::NoWorker };
    let opening = tables.opening(key);
    let is_moving = !slot.previous.is_none();
    match held(tables, service, key) {
        Some(backend) if is_moving => Flow::Bound(backend),
        _ if is_moving && !opening.is_none() && tables.is_live(opening) => Flow::Opening(opening),
        _ if is_moving && tables.is_live(slot.previous) => Flow::Previous(slot.previous),
        _ if slot.current.is_none() => Flow::NoWorker,
        _ => Flow::Ring(slot.current),
    }
}

/// The backend of a binding that holds.
fn held(tables: &Memory, service: &Service, key: &BindingKey) -> Option<BackendId> {
    let binding = tables.binding(key)?;
    (tables.is_live(binding.backend) && is_fresh(service, &binding, tables.now_s)).then_some(binding.backend)
}
