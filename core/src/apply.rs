//! One payload's events, applied to one source.
//!
//! Contract: the order of things within a batch is the reference's (`application.py`). A
//! BlockStored of n blocks means n stores of one block, each with the one before it as its parent;
//! so where a block in the middle is not believed, those behind it wait for it as orphans. Knows no
//! bytes of events, and of no other source.
//!
//! Shape: here are the course of a batch, removals and clears; blocks are stored by `stored`, joined
//! to parents that came late by `waiting`, and asked for in advance by `ahead`. Events are decoded before the source's lock is taken. The lock is given up, to whoever
//! waits, after every 64 blocks; readers of the index do not take it at all. A clear that comes
//! in meanwhile makes the rest of the batch void.

mod ahead;
mod stored;
mod waiting;

use crate::events::{Batch, Event, Lists, Removed};
use crate::reasons::{Reason, Skipped};
use crate::source::{Present, Source};
use crate::state::GPU;
use ahead::Foreseen;
use crossbeam_epoch::Guard;
use parking_lot::MutexGuard;

/// Blocks that may be touched before the source's lock is offered to others.
const STRETCH_BLOCKS: i64 = 64;

/// What one payload did; see `aibrix_extproc.index.results.Applied`.
#[derive(Default, Debug, PartialEq)]
pub struct Applied {
    pub stored: u64,
    pub removed: u64,
    pub cleared: u64,
    pub parked: u64,
    pub skipped: Skipped,
    pub timestamp: Option<f64>,
    pub events: u64,
}

/// The source was cleared or removed meanwhile; what is left of the batch is void.
struct Overtaken;
type Step = Result<(), Overtaken>;

/// Applies one batch to one source, once.
pub struct Application<'a> {
    source: &'a Source,
    lists: &'a Lists,
    present: MutexGuard<'a, Present>,
    /// As it was when this batch began, or changed it.
    replaced: u64,
    pin: Guard,
    left: i64,
    max_orphans: usize,
    applied: Applied,
    refusals: [bool; crate::reasons::COUNT],
    scratch: &'a mut Scratch,
}

/// Kept from call to call for its memory.
#[derive(Default)]
pub struct Scratch {
    /// Of the blocks that come next in this event, the last first.
    keys: Vec<u64>,
    /// Of this event and of the next one.
    now: Foreseen,
    next: Foreseen,
}

impl Scratch {
    /// A batch may have ended anywhere.
    fn forget(&mut self) {
        self.keys.clear();
        self.now.forget();
        self.next.forget();
    }

    fn step(&mut self) {
        std::mem::swap(&mut self.now, &mut self.next);
    }
}

impl<'a> Application<'a> {
    pub fn run(
        source: &'a Source,
        batch: &Batch,
        lists: &'a Lists,
        scratch: &'a mut Scratch,
        max_orphans: usize,
    ) -> Applied {
        scratch.forget();
        let present = source.present.lock();
        let mut application = Application {
            source,
            lists,
            replaced: present.replaced,
            present,
            pin: crossbeam_epoch::pin(),
            left: STRETCH_BLOCKS,
            max_orphans,
            applied: Applied {
                timestamp: batch.timestamp,
                events: batch.events.len() as u64,
                ..Applied::default()
            },
            refusals: [false; crate::reasons::COUNT],
            scratch,
        };
        if !application.present.removed {
            let _ = application.apply_all(batch);
        }
        application.present.state.settle();
        if application.left < STRETCH_BLOCKS / 2 {
            application.pin.flush();
        }
        application.applied
    }

    fn apply_all(&mut self, batch: &Batch) -> Step {
        self.fetch_ahead(batch);
        for (at, event) in batch.events.iter().enumerate() {
            match *event {
                Event::Stored(number) => {
                    if let Some(&Event::Stored(next)) = batch.events.get(at + 1) {
                        self.foresee(batch, next);
                    }
                    self.store(&batch.stored[number as usize], number)?;
                    self.scratch.step();
                }
                Event::Removed(number) => self.remove(&batch.removed[number as usize])?,
                Event::Cleared => self.clear()?,
                Event::Unreadable(reason) => self.skip(reason)?,
            }
        }
        Ok(())
    }

    fn skip(&mut self, reason: Reason) -> Step {
        self.applied.skipped.add(reason);
        self.spend(1)
    }

    /// So many blocks of the stretch are used; let others in where it is at its end.
    fn spend(&mut self, blocks: i64) -> Step {
        self.left -= blocks;
        if self.left > 0 {
            return Ok(());
        }
        self.left = STRETCH_BLOCKS;
        self.present.state.settle();
        MutexGuard::bump(&mut self.present);
        self.pin.repin();
        // Memory that is put aside is else freed by every 128th pin, some pieces each time: a batch
        // of thousands of blocks pins once, and puts aside more than that.
        self.pin.flush();
        self.check_present()
    }

    fn check_present(&self) -> Step {
        if self.present.replaced == self.replaced { Ok(()) } else { Err(Overtaken) }
    }

    fn clear(&mut self) -> Step {
        let after = self.present.state.successor();
        let mut before = std::mem::replace(&mut self.present.state, after);
        before.end();
        before.settle();
        self.present.replaced += 1;
        self.replaced = self.present.replaced;
        self.applied.cleared += 1;
        self.pin.repin();
        MutexGuard::unlocked(&mut self.present, || before.sweep());
        self.check_present()
    }

    fn remove(&mut self, event: &Removed) -> Step {
        let medium = event.medium.unwrap_or(GPU);
        let Some(shelf) = self.present.state.shelf(medium, event.group) else { return Ok(()) };
        let lists = self.lists;
        for at in event.hashes.clone() {
            let name = lists.hashes[at];
            if let Some(&soon) = lists.hashes.get(at + ahead::FAR) {
                self.present.state.prefetch_name(shelf, soon);
            }
            if let Some(&soon) = lists.hashes.get(at + ahead::HALFWAY) {
                self.present.state.prefetch_entry(shelf, soon);
            }
            if let Some(&next) = lists.hashes.get(at + ahead::NEAR) {
                self.present.state.prefetch_held(shelf, next, &self.pin);
            }
            if self.present.state.take(shelf, name, &self.pin) {
                self.applied.removed += 1;
            }
            self.spend(1)?;
        }
        Ok(())
    }
}
