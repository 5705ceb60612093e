//! Backend indices and their generations: which ones are free, and what the next id of each is.

use lb_common::abi::{BackendId, MAX_BACKENDS, MAX_GENERATION};

/// Hands out backend ids; remembers the last generation of each index so that no id comes twice before it wraps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backends(Vec<Index>);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Index {
    /// The last one handed out; 0 for none yet.
    generation: u32,
    is_taken: bool,
}

impl Backends {
    /// An id that nobody had. `None` when all [`MAX_BACKENDS`] are taken.
    pub fn take(&mut self) -> Option<BackendId> {
        let free = self.0.iter().position(|index| !index.is_taken).unwrap_or(self.0.len());
        let index = u32::try_from(free).ok().filter(|&index| index < MAX_BACKENDS)?;
        let entry = self.at(index);
        entry.generation = if entry.generation >= MAX_GENERATION { 1 } else { entry.generation + 1 };
        entry.is_taken = true;
        Some(BackendId::new(index, entry.generation))
    }

    /// Nobody has this id any more.
    pub fn release(&mut self, id: BackendId) {
        if !id.is_none() {
            self.at(id.index()).is_taken = false;
        }
    }

    /// Somebody of an earlier run still has this id.
    pub fn adopt(&mut self, id: BackendId) {
        self.seen(id);
        self.at(id.index()).is_taken = true;
    }

    /// Makes sure that later ids at this index are newer than `id`.
    pub fn seen(&mut self, id: BackendId) {
        let entry = self.at(id.index());
        entry.generation = entry.generation.max(id.generation());
    }

    /// By index, the last id handed out; what a state file keeps.
    pub fn last(&self) -> impl Iterator<Item = BackendId> + '_ {
        (0..)
            .zip(&self.0)
            .filter(|(_, entry)| entry.generation > 0)
            .map(|(index, entry)| BackendId::new(index, entry.generation))
    }

    fn at(&mut self, index: u32) -> &mut Index {
        let index = index as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, Index::default());
        }
        &mut self.0[index]
    }
}
