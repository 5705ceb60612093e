//! Backend indices and their generations: which ones are free, and what the next id of each is.

use lb_common::abi::{BackendId, MAX_BACKENDS, MAX_GENERATION};

/// Hands out backend indices; remembers the last generation of each so that no id comes twice before it wraps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backends {
    /// By index: the last generation handed out; 0 for none yet.
    generations: Vec<u32>,
}

impl Backends {
    /// Reserves an index for a worker; it keeps it for the run. `None` when all [`MAX_BACKENDS`] are taken.
    pub fn reserve(&mut self) -> Option<u32> {
        let index = u32::try_from(self.generations.len()).ok()?;
        if index >= MAX_BACKENDS {
            return None;
        }
        self.generations.push(0);
        Some(index)
    }

    /// The id of the next process at this index.
    pub fn next(&mut self, index: u32) -> BackendId {
        let generation = &mut self.generations[index as usize];
        *generation = if *generation >= MAX_GENERATION { 1 } else { *generation + 1 };
        BackendId::new(index, *generation)
    }

    /// Makes sure that later ids at this index are newer than `id`.
    pub fn seen(&mut self, id: BackendId) {
        let index = id.index() as usize;
        if self.generations.len() <= index {
            self.generations.resize(index + 1, 0);
        }
        self.generations[index] = self.generations[index].max(id.generation());
    }

    /// By index, the last id handed out; what a state file keeps.
    pub fn last(&self) -> impl Iterator<Item = BackendId> + '_ {
        (0..)
            .zip(&self.generations)
            .filter(|(_, g)| **g > 0)
            .map(|(index, &generation)| BackendId::new(index, generation))
    }
}
