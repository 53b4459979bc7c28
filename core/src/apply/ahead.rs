//! What a batch will touch, asked for before its turn.
//!
//! Contract: nothing here changes anything. Keys that were made ahead are used only where the
//! parent's key turned out to be the one that they were made for.
//!
//! Why: a block touches a line of its source's table and one of the model's, both cold. With the
//! keys of one event made while the event before is applied, both are there when they are needed.

use super::Application;
use super::stored::{bytes_of, fitting_block_size};
use crate::events::{Batch, Event, Stored};
use crate::keys::{self, TOKEN_BYTES};

/// How many hashes ahead memory is asked for, of hashes that are taken: for the hash, for its
/// entry, and for the key that it means.
pub const FAR: usize = 24;
pub const HALFWAY: usize = 16;
pub const NEAR: usize = 8;
/// Of an event, so many blocks are foreseen; of a batch, so many parents.
const BLOCKS: usize = 32;
const PARENTS: usize = 32;

/// Keys that the blocks of an event will have if nothing comes between.
#[derive(Default)]
pub struct Foreseen {
    event: Option<u32>,
    /// The key before its first block.
    root: u64,
    /// From the last that was foreseen to the first.
    keys: Vec<u64>,
}

impl Foreseen {
    pub fn forget(&mut self) {
        self.event = None;
    }

    /// The keys, if they are of this event and follow this key.
    pub fn take(&mut self, event: u32, root: u64, keys: &mut Vec<u64>) {
        if self.event == Some(event) && self.root == root {
            std::mem::swap(keys, &mut self.keys);
        }
        self.forget();
    }
}

impl Application<'_> {
    /// Have the memory fetched that the first events will need, and that of all their parents.
    pub(super) fn fetch_ahead(&mut self, batch: &Batch) {
        let state = &self.present.state;
        let Some(shelf) = state.usual_shelf() else { return };
        let parents = || batch.stored.iter().take(PARENTS).filter_map(|event| event.parent);
        let removed = matches!(batch.events.first(), Some(Event::Removed(_)));
        let hashes = || self.lists.hashes.iter().take(FAR);
        parents().for_each(|parent| state.prefetch_name(shelf, parent));
        hashes().for_each(|&name| state.prefetch_name(shelf, name));
        parents().for_each(|parent| state.prefetch_entry(shelf, parent));
        if removed {
            hashes().take(HALFWAY).for_each(|&name| state.prefetch_entry(shelf, name));
            hashes().take(NEAR).for_each(|&name| state.prefetch_held(shelf, name, &self.pin));
        } else if let Some(Event::Stored(0)) = batch.events.first() {
            self.foresee(batch, 0);
            self.scratch.step();
        }
    }

    /// Make the keys of an event that comes soon, if it is of the usual kind.
    pub(super) fn foresee(&mut self, batch: &Batch, number: u32) {
        self.scratch.next.forget();
        let event = &batch.stored[number as usize];
        let state = &self.present.state;
        let (Some(block_size), Some(shelf)) = (fitting_block_size(event), state.usual_shelf())
        else {
            return;
        };
        if event.extras.is_some_and(|extras| extras.any) || event.salt.is_some() {
            return;
        }
        let Some(root) = self.root_of(event, block_size) else { return };
        let tokens = bytes_of(&self.lists.tokens[event.tokens.clone()]);
        let hashes = &self.lists.hashes[event.hashes.clone()];
        let block_bytes = block_size as usize * TOKEN_BYTES;
        let mut key = root;
        self.scratch.next.keys.clear();
        for (tokens, &name) in tokens.chunks_exact(block_bytes).zip(hashes).take(BLOCKS) {
            state.prefetch_name(shelf, name);
            key = keys::plain(key, tokens);
            state.prefetch_key(key, &self.pin);
            self.scratch.next.keys.push(key);
        }
        self.scratch.next.keys.reverse();
        (self.scratch.next.event, self.scratch.next.root) = (Some(number), root);
    }

    fn root_of(&self, event: &Stored, block_size: u32) -> Option<u64> {
        match event.parent {
            Some(parent) => self.present.state.meaning(parent),
            None => Some(keys::root(block_size, self.adapter(event))),
        }
    }
}
