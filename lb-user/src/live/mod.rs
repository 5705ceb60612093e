//! Who listens to decisions as they are made (`homing trace --live`), and what they are told.
//!
//! The HTTP path tells it of requests, control of what the kernel's programs decided; both read one number where nobody
//! listens. A listener that reads slowly misses lines, counted, and keeps nobody waiting.

pub mod line;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lb_common::addr::Addr;
use lb_common::tap::{Decision, EVERY_APP, Rule, TAPS_MAX, Tap, TapCounts, Taps, Weight};
use tokio::sync::mpsc;

use crate::bindings::monotonic_ns;
use crate::routing::Snapshot;
pub use line::Line;
use line::{Connection, Missed};

/// Lines that wait for one listener.
const LINES_MAX: usize = 1_024;
const SLOTS: usize = TAPS_MAX as usize;

/// All listeners. Cheap to clone.
#[derive(Clone, Default)]
pub struct Live(Arc<Hub>);

#[derive(Default)]
struct Hub {
    /// How many listen: the one number that is read where nobody does.
    listening: AtomicU32,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    all: [Option<Slot>; SLOTS],
    /// Listeners ever.
    opened: u64,
}

struct Slot {
    /// Its listener's.
    number: u64,
    /// Open for as long as the slot is there.
    tap: Tap,
    lines: mpsc::Sender<Line>,
    /// When the next request is due to be told.
    due_ns: u64,
    /// Of the HTTP path.
    counts: TapCounts,
    /// Of the kernel's programs when the listener came.
    kernel_before: TapCounts,
    /// How many it has been told to have missed.
    missed: u64,
}

impl Slot {
    fn send(&mut self, line: Line) {
        if self.lines.try_send(line).is_err() {
            self.counts.no_room += 1;
        }
    }

    /// Whether the HTTP path's decision is to be told.
    fn wants(&mut self, now_ns: u64) -> bool {
        self.counts.seen += 1;
        match self.tap.weigh(self.counts.seen, self.due_ns, now_ns) {
            Weight::Skipped => return false,
            Weight::TooFast => self.counts.too_fast += 1,
            Weight::Told { due_ns } => {
                self.due_ns = due_ns;
                return true;
            }
        }
        false
    }

    /// Says how many more were not told, or that homing is there.
    fn tick(&mut self, kernel: TapCounts) {
        let lost = |counts: TapCounts| counts.too_fast + counts.no_room;
        let all = lost(self.counts) + lost(kernel).saturating_sub(lost(self.kernel_before));
        let line = match all - self.missed {
            0 => Line::Alive,
            decisions => Line::Missed(Missed { time: line::now(), decisions }),
        };
        // Where there is no room now, the next one says it.
        if self.lines.try_send(line).is_ok() {
            self.missed = all;
        }
    }
}

impl Hub {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        // A panic cannot leave a slot half-changed.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn count(&self) -> u32 {
        self.all.iter().flatten().count() as u32
    }

    /// Those who are told of this decision of the HTTP path.
    fn wanting(&mut self, app: u32, address: IpAddr) -> impl Iterator<Item = &mut Slot> {
        let (address, now_ns) = (Addr::from(address), monotonic_ns());
        let is_for = move |slot: &&mut Slot| slot.tap.is_for(app, address, now_ns);
        self.all.iter_mut().flatten().filter(is_for).filter_map(move |slot| slot.wants(now_ns).then_some(slot))
    }
}

impl Live {
    #[inline]
    pub fn is_listening(&self) -> bool {
        self.0.listening.load(Ordering::Relaxed) != 0
    }

    /// Lets somebody listen; `kernel`: what the programs have counted until now. `None`: too many do. Which tap it is comes
    /// with it.
    pub fn listen(&self, tap: Tap, kernel: &[TapCounts; SLOTS]) -> Option<(usize, Listening)> {
        let (sender, lines) = mpsc::channel(LINES_MAX);
        let mut slots = self.0.slots();
        let free = slots.all.iter().position(Option::is_none)?;
        slots.opened += 1;
        let number = slots.opened;
        slots.all[free] = Some(Slot {
            number,
            tap: Tap { until_ns: u64::MAX, ..tap },
            lines: sender,
            due_ns: 0,
            counts: TapCounts::default(),
            kernel_before: kernel[free],
            missed: 0,
        });
        self.0.listening.store(slots.count(), Ordering::Relaxed);
        Some((free, Listening { lines, hub: Arc::clone(&self.0), number }))
    }

    /// As the kernel's programs are to have them until then.
    pub fn taps(&self, until_ns: u64) -> Taps {
        let slots = self.0.slots();
        let mut taps = Taps::default();
        for (tap, slot) in taps.taps.iter_mut().zip(&slots.all) {
            if let Some(slot) = slot {
                *tap = Tap { until_ns, ..slot.tap };
                taps.until_ns = until_ns;
            }
        }
        taps
    }

    /// Tells everybody how many decisions they have missed since the last time.
    pub fn tick(&self, kernel: &[TapCounts; SLOTS]) {
        let mut slots = self.0.slots();
        slots.all.iter_mut().zip(kernel).for_each(|(slot, kernel)| {
            if let Some(slot) = slot {
                slot.tick(*kernel);
            }
        });
    }

    /// Nobody listens any more: everybody's lines end.
    pub fn end(&self) {
        let mut slots = self.0.slots();
        slots.all = Default::default();
        self.0.listening.store(0, Ordering::Relaxed);
    }

    /// A request's answer has begun. `app`: unless it is of none.
    pub fn request(&self, app: Option<u32>, address: IpAddr, line: impl FnOnce() -> line::Request) {
        let mut slots = self.0.slots();
        let mut wanting = slots.wanting(app.unwrap_or(EVERY_APP), address).peekable();
        if wanting.peek().is_some() {
            let line = Line::Request(line());
            wanting.for_each(|slot| slot.send(line.clone()));
        }
    }

    /// A connection is refused at the door of the HTTP path.
    pub fn refused(&self, snapshot: &Snapshot, app: u32, (address, port): (IpAddr, u16), rule: Rule) {
        if !self.is_listening() {
            return;
        }
        let line = || connection(snapshot, app, (address, port), rule, None);
        self.0.slots().wanting(app, address).for_each(|slot| slot.send(Line::Connection(line())));
    }

    /// The kernel's programs have decided, and weighed already whom to tell.
    pub fn decided(&self, snapshot: &Snapshot, decision: &Decision) {
        let Some(rule) = Rule::from_number(decision.rule) else { return };
        let &Decision { address, backend, app, port, taps, .. } = decision;
        let route = snapshot.apps.get(&app);
        let number = route.and_then(|route| route.worker(backend)).map(|worker| worker.number);
        let line = connection(snapshot, app, (address.into(), port), rule, number);
        // A tap may be another listener's by now.
        let is_for = |slot: &&mut Slot| slot.tap.is_for(app, address, 0);
        let mut slots = self.0.slots();
        let told = (0..).zip(&mut slots.all).filter(|(bit, _)| taps & (1 << bit) != 0);
        told.filter_map(|(_, slot)| slot.as_mut()).filter(is_for).for_each(|slot| {
            slot.send(Line::Connection(line.clone()));
        });
    }
}

fn connection(
    snapshot: &Snapshot,
    app: u32,
    (client, port): (IpAddr, u16),
    rule: Rule,
    worker: Option<u32>,
) -> Connection {
    let app = snapshot.apps.get(&app).map_or_else(String::new, |route| route.name.to_string());
    let path = match rule {
        Rule::Ring | Rule::Bound => "kernel",
        rule if rule.refuses() => "none",
        _ => "http",
    };
    Connection {
        time: line::now(),
        client,
        port,
        worker: worker.map(|number| format!("{app}/{number}")),
        app,
        path: path.to_owned(),
        rule: rule.name().to_owned(),
    }
}

/// A listener's end. Dropped, nothing is told there any more.
pub struct Listening {
    lines: mpsc::Receiver<Line>,
    hub: Arc<Hub>,
    number: u64,
}

impl Listening {
    /// The next line; `None`: homing tells no more.
    pub async fn next(&mut self) -> Option<Line> {
        self.lines.recv().await
    }
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "listener {}", self.number)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut slots = self.hub.slots();
        for slot in &mut slots.all {
            slot.take_if(|slot| slot.number == self.number);
        }
        self.hub.listening.store(slots.count(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
