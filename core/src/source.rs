//! A source of the index as those see it who share it: what is fixed of it, and its present state
//! behind a lock.
//!
//! Knows no event, no payload and no other source. What the state holds is known to `state`.

use crate::state::State;
use parking_lot::Mutex;
use std::sync::atomic::AtomicU64;

/// A source of the index: what `add_source` said of it, and its present state.
pub struct Source {
    pub model: Box<[u8]>,
    pub lora_id: Option<i128>,
    pub lora_name: Option<Box<[u8]>>,
    /// The seed of its hashes' names; changed by an import, before anything is applied.
    pub naming: AtomicU64,
    pub present: Mutex<Present>,
}

/// A source's state, and how often it was replaced.
pub struct Present {
    pub state: State,
    pub replaced: u64,
    pub removed: bool,
}

impl Source {
    /// Make it hold nothing from the first moment on; then its blocks are taken out.
    pub fn empty(&self, removed: bool) {
        let before = {
            let mut present = self.present.lock();
            let after = present.state.emptied();
            let mut before = std::mem::replace(&mut present.state, after);
            present.replaced += 1;
            present.removed |= removed;
            before.end();
            before
        };
        before.sweep();
    }
}
