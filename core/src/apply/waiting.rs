//! Blocks that wait for their parent: parked, and placed when it has come.
//!
//! Contract: children are placed in the order in which they were parked, then theirs; of too many
//! the oldest are dropped. What is parked is kept by `orphans`; when to look for children is known
//! to who placed the parent.

use super::{Application, Step};
use crate::keys::{self, TOKEN_BYTES};
use crate::orphans::Parked;
use crate::reasons::Reason;
use std::collections::VecDeque;

impl Application<'_> {
    /// Let a block wait; drop the oldest where that is one too many.
    pub(super) fn park(&mut self, block: Parked) -> Step {
        match self.present.state.park(block, &self.pin) {
            Err(reason) => self.refusals[reason as usize] = true,
            Ok(()) => {
                self.applied.parked += 1;
                if self.present.state.orphans.len() > self.max_orphans {
                    self.present.state.drop_oldest_orphan();
                    self.skip(Reason::OrphanDropped)?;
                }
            }
        }
        self.spend(1)
    }

    /// Place the orphans that wait for this block, then those that wait for them.
    pub(super) fn join_children_of(&mut self, name: u64) -> Step {
        let mut parents = VecDeque::from([name]);
        while let Some(parent) = parents.pop_front() {
            while let Some(key) = self.present.state.meaning(parent) {
                let Some(child) = self.present.state.take_child(parent) else { break };
                self.join(&child, key);
                parents.push_back(child.at.1);
                self.spend(1)?;
            }
        }
        Ok(())
    }

    fn join(&mut self, child: &Parked, parent_key: u64) {
        let state = &mut self.present.state;
        let key = keys::block(parent_key, &child.tokens, &child.extras);
        let (shelf, name) = child.at;
        match state.place(shelf, name, key, &self.pin) {
            Err(reason) => self.refusals[reason as usize] = true,
            Ok(()) => {
                state.add_copies(shelf, name, child.copies - 1);
                self.applied.stored += child.copies;
                state.note_block_size(shelf, (child.tokens.len() / TOKEN_BYTES) as u64);
            }
        }
    }
}
