//! Blocks put on a source's shelves, and taken off them.
//!
//! Contract: a hash means one block key on whatever shelf it stands; one that is stored again with
//! other content is taken back in both meanings. The model's table and the index's size follow each
//! change. Knows no event: what a batch does to blocks is known to `apply`.

use super::State;
use crate::model::{BLOCK_BYTES, NOTE_BYTES, PLACEMENT_BYTES};
use crate::orphans::Parked;
use crate::reasons::Reason;
use crossbeam_epoch::Guard;
use std::collections::HashMap;

impl State {
    /// Put one copy of a block on a shelf, or say why not: CONFLICT or FULL.
    pub fn place(&mut self, at: usize, name: u64, key: u64, pin: &Guard) -> Result<(), Reason> {
        let shelf = &mut self.shelves[at];
        let spot = shelf.blocks.find(name);
        if let Ok(held) = spot {
            if held != key {
                self.disbelieve(name, pin);
                return Err(Reason::Conflict);
            }
            note(&mut shelf.more, name, 1, &mut self.bytes_added);
            shelf.placements += 1;
            return Ok(());
        }
        if self.shelves.len() > 1
            && self.shelves.iter().any(|s| s.blocks.get(name).is_some_and(|k| k != key))
        {
            self.disbelieve(name, pin);
            return Err(Reason::Conflict);
        }
        if self.full || self.room_bytes() < PLACEMENT_BYTES + BLOCK_BYTES {
            self.full = true;
            return Err(Reason::Full);
        }
        let shelf = &mut self.shelves[at];
        if let Err(spot) = spot {
            shelf.blocks.insert(spot, name, key);
        }
        shelf.placements += 1;
        let (added, is_new) = self.model.table.insert(key, shelf.slot, pin);
        if !added {
            note(&mut shelf.twins, key, 1, &mut self.bytes_added);
        }
        self.bytes_added += PLACEMENT_BYTES + if is_new { BLOCK_BYTES } else { 0 };
        self.blocks_added += i64::from(is_new);
        Ok(())
    }

    /// Count further copies of a block that stands on the shelf.
    pub fn add_copies(&mut self, at: usize, name: u64, copies: u64) {
        if copies > 0 {
            let shelf = &mut self.shelves[at];
            note(&mut shelf.more, name, copies, &mut self.bytes_added);
            shelf.placements += copies;
        }
    }

    /// Take one copy of a block; false where the shelf has none, placed or parked.
    pub fn take(&mut self, at: usize, name: u64, pin: &Guard) -> bool {
        let shelf = &mut self.shelves[at];
        if !shelf.more.is_empty()
            && let Some(more) = shelf.more.get_mut(&name)
        {
            *more -= 1;
            shelf.placements -= 1;
            if *more == 0 {
                shelf.more.remove(&name);
                self.bytes_added -= NOTE_BYTES;
            }
            return true;
        }
        self.vacate(at, name, pin) || self.take_parked(at, name)
    }

    fn take_parked(&mut self, at: usize, name: u64) -> bool {
        let before = self.orphans.bytes;
        let taken = self.orphans.take_copy((at, name));
        self.bytes_added += self.orphans.bytes - before;
        taken
    }

    /// Let a block wait for its parent, or say why not: CONFLICT or FULL.
    pub fn park(&mut self, block: Parked, pin: &Guard) -> Result<(), Reason> {
        if let Some(parked) = self.orphans.find(block.at) {
            if !parked.is_like(&block) {
                self.disbelieve(block.at.1, pin);
                return Err(Reason::Conflict);
            }
            parked.copies += 1;
            return Ok(());
        }
        if self.full || self.room_bytes() < block.size_bytes() {
            self.full = true;
            return Err(Reason::Full);
        }
        self.bytes_added += block.size_bytes();
        self.orphans.add(block);
        Ok(())
    }

    pub fn drop_oldest_orphan(&mut self) {
        let before = self.orphans.bytes;
        self.orphans.drop_oldest();
        self.bytes_added += self.orphans.bytes - before;
    }

    pub fn take_child(&mut self, parent: u64) -> Option<Parked> {
        let child = self.orphans.take_child(parent)?;
        self.bytes_added -= child.size_bytes();
        Some(child)
    }

    /// Take back all copies of a hash, placed and parked, on all shelves.
    fn disbelieve(&mut self, name: u64, pin: &Guard) {
        for at in 0..self.shelves.len() {
            self.vacate(at, name, pin);
            if let Some(parked) = self.orphans.remove((at, name)) {
                self.bytes_added -= parked.size_bytes();
            }
        }
    }

    /// Take all copies of a hash off one shelf; whether there were any.
    fn vacate(&mut self, at: usize, name: u64, pin: &Guard) -> bool {
        let shelf = &mut self.shelves[at];
        let Some(key) = shelf.blocks.remove(name) else { return false };
        shelf.placements -= 1;
        if !shelf.more.is_empty()
            && let Some(more) = shelf.more.remove(&name)
        {
            shelf.placements -= more;
            self.bytes_added -= NOTE_BYTES;
        }
        self.bytes_added -= PLACEMENT_BYTES;
        if !shelf.twins.is_empty()
            && let Some(twins) = shelf.twins.get_mut(&key)
        {
            *twins -= 1;
            if *twins == 0 {
                shelf.twins.remove(&key);
                self.bytes_added -= NOTE_BYTES;
            }
            return true;
        }
        let (_, is_gone) = self.model.table.remove(key, shelf.slot, pin);
        shelf.info.changed();
        if is_gone {
            self.blocks_added -= 1;
            self.bytes_added -= BLOCK_BYTES;
        }
        true
    }
}

/// Count so many more in one of a shelf's small maps.
fn note(notes: &mut HashMap<u64, u64>, of: u64, count: u64, bytes_added: &mut i64) {
    *notes.entry(of).or_insert_with(|| {
        *bytes_added += NOTE_BYTES;
        0
    }) += count;
}
