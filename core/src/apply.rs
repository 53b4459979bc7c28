//! One payload's events, applied to one source.
//!
//! Contract: the order of things within a batch is the reference's (`application.py`). A
//! BlockStored of n blocks means n stores of one block, each with the one before it as its parent;
//! so where a block in the middle is not believed, those behind it wait for it as orphans.
//!
//! Shape: events are decoded before the source's lock is taken. The lock is given up, to whoever
//! waits, after every 64 blocks; readers of the index do not take it at all. A clear that comes
//! in meanwhile makes the rest of the batch void.

mod ahead;

use crate::events::{Batch, Event, Lists, Removed, Stored};
use crate::keys::{self, Adapter, TOKEN_BYTES};
use crate::orphans::Parked;
use crate::reasons::{Reason, Skipped};
use crate::state::{GPU, State};
use crate::wire::Reader;
use ahead::Foreseen;
use crossbeam_epoch::Guard;
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::AtomicU64;

/// Blocks that may be touched before the source's lock is offered to others.
const STRETCH_BLOCKS: i64 = 64;

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

/// Consecutive blocks of one prompt, understood as far as their event alone tells.
struct Blocks<'a> {
    hashes: &'a [u64],
    tokens: &'a [u8],
    block_bytes: usize,
    /// Encoded, one after another.
    extras: Vec<u8>,
    /// Of each block; empty where no block has any.
    extras_of: Vec<Range<usize>>,
}

impl Blocks<'_> {
    fn content(&self, number: usize) -> (&[u8], &[u8]) {
        let start = number * self.block_bytes;
        let extras = self.extras_of.get(number).map_or(&[][..], |of| &self.extras[of.clone()]);
        (&self.tokens[start..start + self.block_bytes], extras)
    }

    fn key(&self, parent: u64, number: usize) -> u64 {
        let (tokens, extras) = self.content(number);
        keys::block(parent, tokens, extras)
    }
}

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

    // -- BlockStored -----------------------------------------------------------------------

    fn store(&mut self, event: &Stored, number: u32) -> Step {
        let indexed = self.present.state.learn_kind(event.group, event.kind);
        self.present.state.learn_lookahead(event.lookahead as u64);
        let Some(block_size) = fitting_block_size(event) else { return self.skip(Reason::Misfit) };
        let adapter = self.adapter(event);
        let Some(blocks) = self.understand(event, block_size, adapter) else {
            return self.skip(Reason::UnreadableStored);
        };
        if blocks.hashes.is_empty() {
            return Ok(());
        }
        if matches!(adapter, Adapter::Nameless(_)) {
            self.skip(Reason::UnnamedAdapter)?;
        }
        let medium = event.medium.unwrap_or(GPU);
        let shelf = if indexed { self.present.state.shelf_for(medium, event.group) } else { None };
        let Some(shelf) = shelf else { return self.skip(Reason::GroupNotIndexed) };
        let key = match event.parent {
            None => Some(keys::root(block_size, adapter)),
            Some(parent) => self.present.state.meaning(parent),
        };
        if let Some(key) = key {
            let Scratch { keys, now, .. } = &mut *self.scratch;
            now.take(number, key, keys);
        }
        self.store_blocks(shelf, &blocks, event.parent, key)?;
        for reason in [Reason::Conflict, Reason::Full] {
            if std::mem::take(&mut self.refusals[reason as usize]) {
                self.skip(reason)?;
            }
        }
        Ok(())
    }

    fn adapter<'e>(&self, event: &Stored<'e>) -> Adapter<'e>
    where
        'a: 'e,
    {
        match (event.lora_name, event.lora_id, &self.source.lora_name) {
            (Some(name), _, _) => Adapter::Named(name.as_bytes()),
            (None, None, _) => Adapter::None,
            (None, id, Some(name)) if id == self.source.lora_id => Adapter::Named(name),
            (None, Some(id), _) => Adapter::Nameless(id),
        }
    }

    /// The blocks of an event whose lengths fit; None where extras have no place in a key.
    fn understand(&self, event: &Stored, block_size: u32, adapter: Adapter) -> Option<Blocks<'a>> {
        let hashes = &self.lists.hashes[event.hashes.clone()];
        let mut blocks = Blocks {
            hashes,
            tokens: bytes_of(&self.lists.tokens[event.tokens.clone()]),
            block_bytes: block_size as usize * TOKEN_BYTES,
            extras: Vec::new(),
            extras_of: Vec::new(),
        };
        let Some(extra_keys) = event.extras else {
            // SGLang's salt counts for block 0, as a request's does.
            if event.parent.is_none() && !hashes.is_empty() {
                blocks.extras = keys::encode_salt(event.salt.unwrap_or("").as_bytes());
                if !blocks.extras.is_empty() {
                    blocks.extras_of.push(0..blocks.extras.len());
                }
            }
            return Some(blocks);
        };
        if extra_keys.any {
            let name = if let Adapter::Named(name) = adapter { Some(name) } else { None };
            let mut lists = Reader::new(extra_keys.lists);
            for _ in 0..extra_keys.count {
                let start = blocks.extras.len();
                if !lists.nil().ok()? {
                    keys::encode_extras(&mut lists, name, &mut blocks.extras).ok()?;
                }
                blocks.extras_of.push(start..blocks.extras.len());
            }
        }
        Some(blocks)
    }

    /// Place the blocks one after another; park those whose parent is unknown.
    fn store_blocks(
        &mut self,
        shelf: usize,
        blocks: &Blocks,
        parent: Option<u64>,
        key: Option<u64>,
    ) -> Step {
        let block_size = (blocks.block_bytes / TOKEN_BYTES) as u64;
        let (mut key, mut parent) = (key, parent.unwrap_or(0));
        for (number, &name) in blocks.hashes.iter().enumerate() {
            if let Some(before) = key {
                let own = self.chained(shelf, blocks, before, number);
                match self.present.state.place(shelf, name, own, &self.pin) {
                    Ok(()) => {
                        self.applied.stored += 1;
                        self.present.state.note_block_size(shelf, block_size);
                        key = Some(own);
                        if self.present.state.orphans.awaits(name) {
                            self.spend(1)?;
                            self.join_children_of(name)?;
                            key = self.present.state.meaning(name).map(|_| own);
                        } else {
                            self.spend(1)?;
                        }
                    }
                    Err(reason) => {
                        self.refusals[reason as usize] = true;
                        key = self.present.state.meaning(name).map(|_| own);
                        self.spend(1)?;
                    }
                }
            } else {
                let (tokens, extras) = blocks.content(number);
                self.park(Parked {
                    at: (shelf, name),
                    parent,
                    tokens: tokens.into(),
                    extras: extras.into(),
                    copies: 1,
                })?;
                self.scratch.keys.clear();
                key = self.present.state.meaning(name);
            }
            parent = name;
        }
        self.scratch.keys.clear();
        Ok(())
    }

    /// The key of a block. Those of some blocks behind it are made at the same time, so that the
    /// memory they will need is on its way.
    fn chained(&mut self, shelf: usize, blocks: &Blocks, before: u64, number: usize) -> u64 {
        if self.scratch.keys.is_empty() {
            const AHEAD: usize = 16;
            let end = blocks.hashes.len().min(number + AHEAD);
            let mut key = before;
            for next in number..end {
                key = blocks.key(key, next);
                self.present.state.prefetch_key(key, &self.pin);
                self.present.state.prefetch_name(shelf, blocks.hashes[next]);
                self.scratch.keys.push(key);
            }
            self.scratch.keys.reverse();
        }
        self.scratch.keys.pop().unwrap_or_else(|| blocks.key(before, number))
    }

    // -- orphans ---------------------------------------------------------------------------

    fn park(&mut self, block: Parked) -> Step {
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
    fn join_children_of(&mut self, name: u64) -> Step {
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

/// Tokens per block, where an event's tokens are exactly those of its blocks. Engines send other
/// events for offload placeholders and masked groups.
fn fitting_block_size(event: &Stored) -> Option<u32> {
    let blocks = event.hashes.len();
    let size = usize::try_from(event.block_size).ok().filter(|&size| size > 0)?;
    if size.checked_mul(blocks) != Some(event.token_count)
        || event.tokens.len() != event.token_count
        || event.extras.is_some_and(|extras| extras.count != blocks)
    {
        return None;
    }
    // Without blocks any size fits, and none is used.
    Some(u32::try_from(size).unwrap_or(u32::MAX))
}

/// Tokens as they are hashed: four bytes each, little-endian.
fn bytes_of(tokens: &[u32]) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "keys are made of little-endian tokens") };
    // SAFETY: every bit pattern is a u8, and the slice covers the same memory.
    unsafe { std::slice::from_raw_parts(tokens.as_ptr().cast(), size_of_val(tokens)) }
}
