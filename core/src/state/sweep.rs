//! The end of a state: what it holds is taken off the model's table, with no lock held.
//!
//! Knows nothing of who ended it, nor of the state that took its place.

use super::State;
use crate::model::{BLOCK_BYTES, NOTE_BYTES, PLACEMENT_BYTES};
use crossbeam_epoch::Guard;

/// Blocks taken out by a sweep before memory is freed: each puts aside a set and an array at most.
const FREED_EVERY: usize = 128;

impl State {
    /// Count for nothing from now on. Takes the same time however much is held.
    pub fn end(&mut self) {
        self.shelves.iter().for_each(|shelf| self.model.count(&shelf.info, 0));
    }

    /// Take everything off the shelves. Nobody else may hold on to this state.
    pub fn sweep(mut self) {
        self.bytes_added -= self.orphans.bytes;
        for shelf in std::mem::take(&mut self.shelves) {
            self.bytes_added -= NOTE_BYTES * (shelf.more.len() + shelf.twins.len()) as i64;
            let pin = &mut crossbeam_epoch::pin();
            let (mut keys, mut soon) = (shelf.blocks.keys(), Vec::with_capacity(FREED_EVERY));
            loop {
                // Their memory is asked for before the first of them is taken out.
                soon.extend(keys.by_ref().take(FREED_EVERY));
                soon.iter().for_each(|&key| self.model.table.prefetch(key, pin));
                if soon.is_empty() {
                    break;
                }
                for key in soon.drain(..) {
                    let (_, is_gone) = self.model.table.remove(key, shelf.slot, pin);
                    self.blocks_added -= i64::from(is_gone);
                    self.bytes_added -= PLACEMENT_BYTES + if is_gone { BLOCK_BYTES } else { 0 };
                }
                free_what_is_due(pin);
                self.settle();
            }
            self.model.free_slot(shelf.slot);
            free_what_is_due(pin);
        }
        self.settle();
    }
}

/// Free what no reader can see any more. Memory that was put aside is else freed as others pin, some
/// pieces each time: a model that is taken apart puts aside more than that, and faster.
fn free_what_is_due(pin: &mut Guard) {
    for _ in 0..2 {
        pin.repin();
        pin.flush();
    }
}
