//! How deep a prompt is held, in every source that holds any of it.
//!
//! Contract: exact, holes included: a depth is the number of leading blocks that a source held at
//! one moment of the call. Takes no lock, unless a source changes so fast that three looks at it
//! failed; then its writer is held up for one look.
//!
//! Shape: keys are made in chunks that grow, so that a prompt that nobody has costs 24 hashes,
//! and each key's memory is asked for as soon as it is known: hashing and fetching overlap. Then
//! one step per block: the sources still in the running are in one word of four lanes, or in a
//! bitmap, and a block with the same word as the one before needs no work at all.
//!
//! Why it is right without a lock: every change that can make a depth smaller raises its shelf's
//! version after it. A source's version is read before its first block and compared after its
//! last. Where it is the same, all that was seen of it lies between two removals, where blocks
//! only come: then at the moment when the walk of that source ended, it held exactly what was
//! seen.

use crate::keys::{self, TOKEN_BYTES};
use crate::model::{Model, SlotInfo};
use crate::sets::{self, Set, Slot};
use crate::table::Ahead;
use crossbeam_epoch::Guard;
use std::slice::ChunksExact;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const ATTEMPTS: usize = 3;
/// No set has this word.
const UNLIKE_ANY: u64 = u64::MAX;

/// One look at the index for a prompt in blocks of one size. Kept from call to call for its memory.
#[derive(Default)]
pub struct Walk {
    /// Holders of block 0 that count, and their versions before anything was seen of them.
    starts: Vec<(Slot, u64)>,
    /// (slot, leading blocks it holds).
    ends: Vec<(Slot, u64)>,
    alive: Alive,
    scratch: Vec<u64>,
}

/// The slots that hold every block so far.
enum Alive {
    Lanes(u64),
    Bits(Vec<u64>),
}

impl Default for Alive {
    fn default() -> Self {
        Alive::Lanes(0)
    }
}

/// What is asked: whole blocks of `block_size` tokens, after the key `root`.
pub struct Question<'a> {
    pub tokens: &'a [u8],
    pub block_size: u64,
    pub root: u64,
    /// Extras of block 0, encoded.
    pub extras: &'a [u8],
}

impl<'a> Question<'a> {
    fn blocks(&self) -> ChunksExact<'a, u8> {
        self.tokens.chunks_exact(self.block_size as usize * TOKEN_BYTES)
    }

    /// Leading blocks that stand on one shelf, one after another.
    fn held_by(&self, slot: Slot, model: &Model, pin: &Guard) -> u64 {
        let (mut key, mut extras) = (self.root, self.extras);
        let held = self.blocks().take_while(|tokens| {
            key = keys::block(key, tokens, std::mem::take(&mut extras));
            model.table.get(key, pin).contains(slot)
        });
        held.count() as u64
    }
}

impl Walk {
    /// Append (source, depth) for each source with a depth above 0. `hold` keeps a source from
    /// changing while it calls back.
    pub fn depths(
        &mut self,
        model: &Model,
        question: &Question,
        pin: &Guard,
        out: &mut Vec<(u64, u64)>,
        hold: impl Fn(u64, &mut dyn FnMut()),
    ) {
        for _ in 0..ATTEMPTS {
            let infos = model.infos();
            self.walk(model, &infos, question, pin);
            if self.answer(&infos, question.block_size, out) {
                return;
            }
        }
        let infos = model.infos();
        for (slot, _) in std::mem::take(&mut self.ends) {
            let info = &infos[slot as usize];
            hold(info.source, &mut || {
                if info.counted() == question.block_size {
                    push(out, info, question.held_by(slot, model, pin), question.block_size);
                }
            });
        }
    }

    /// Move to `out` what held still; whether all did. What did not stays in `ends`.
    fn answer(
        &mut self,
        infos: &[Arc<SlotInfo>],
        block_size: u64,
        out: &mut Vec<(u64, u64)>,
    ) -> bool {
        let start = out.len();
        let mut still = true;
        for &(slot, held) in &self.ends {
            let info = &infos[slot as usize];
            push(out, info, held, block_size);
            let at = self.starts.binary_search_by_key(&slot, |&(slot, _)| slot);
            still &= at.is_ok_and(|at| self.starts[at].1 == info.version())
                && info.counted() == block_size;
        }
        if !still {
            out.truncate(start);
        }
        still
    }

    fn walk(&mut self, model: &Model, infos: &[Arc<SlotInfo>], asked: &Question, pin: &Guard) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("bmi2") {
            // SAFETY: the processor has what it is compiled for.
            return unsafe { self.walk_with_bmi2(model, infos, asked, pin) };
        }
        self.walk_anywhere(model, infos, asked, pin);
    }

    /// The same code, with shifts and products by any register: a tenth fewer instructions.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "bmi1,bmi2")]
    fn walk_with_bmi2(
        &mut self,
        model: &Model,
        infos: &[Arc<SlotInfo>],
        asked: &Question,
        pin: &Guard,
    ) {
        self.walk_anywhere(model, infos, asked, pin);
    }

    #[inline(always)]
    fn walk_anywhere(
        &mut self,
        model: &Model,
        infos: &[Arc<SlotInfo>],
        asked: &Question,
        pin: &Guard,
    ) {
        self.ends.clear();
        self.alive = Alive::default();
        let mut coming = asked.blocks();
        let Some(first) = coming.next() else { return };
        let mut key = keys::block(asked.root, first, asked.extras);
        let mut ahead = Ahead::new(&model.table, pin);
        ahead.begin(0, key);
        for (number, tokens) in (1..).zip(coming.by_ref().take(Ahead::MOST - 1)) {
            key = keys::plain(key, tokens);
            ahead.begin(number, key);
        }
        self.begin(infos, asked.block_size, ahead.end(0));
        let blocks = asked.blocks().len();
        let mut last = UNLIKE_ANY;
        for at in 0..blocks {
            let set = ahead.end(at);
            // Of a set like the one before there is nothing to learn.
            if set.0 != last {
                last = set.0;
                if !self.step(set, at as u64) {
                    return;
                }
            }
            if let Some(tokens) = coming.next() {
                key = keys::plain(key, tokens);
                ahead.begin(at, key);
            }
        }
        let (alive, ends) = (&self.alive, &mut self.ends);
        alive.for_each(|slot| ends.push((slot, blocks as u64)));
    }

    /// Who is in the running: holders of block 0 whose shelf counts, in blocks of this size.
    fn begin(&mut self, infos: &[Arc<SlotInfo>], block_size: u64, first: Set) {
        self.starts.clear();
        let starts = &mut self.starts;
        first.for_each(|slot| {
            if let Some(info) = infos.get(slot as usize) {
                // The version first: what is seen of the shelf comes after it.
                let version = info.version();
                if info.counted() == block_size {
                    starts.push((slot, version));
                }
            }
        });
        starts.sort_unstable();
        self.alive.set(starts);
    }

    /// Leave those out that do not hold block `at`; whether anybody is left.
    #[inline(never)]
    fn step(&mut self, set: Set, at: u64) -> bool {
        let ends = &mut self.ends;
        let mut end = |slot: Slot| {
            if at > 0 {
                ends.push((slot, at));
            }
        };
        match &mut self.alive {
            Alive::Lanes(alive) => {
                let mut left = *alive;
                Set(*alive).for_each(|slot| {
                    if !set.contains(slot) {
                        left = sets::without_lane(left, slot);
                        end(slot);
                    }
                });
                *alive = left;
                left != 0
            }
            Alive::Bits(alive) => {
                let members = narrow(alive, set, &mut self.scratch, end);
                if members <= 4 {
                    self.alive.shrink();
                }
                members > 0
            }
        }
    }
}

/// Leave in a bitmap what is in the set too, and call `gone` with all else; how many are left.
#[inline(always)]
fn narrow(alive: &mut [u64], set: Set, scratch: &mut Vec<u64>, mut gone: impl FnMut(Slot)) -> u32 {
    let (mut members, words) = (0, alive.len());
    let mut keep = |number: usize, bits: u64| {
        let before = alive[number];
        let mut left_out = before & !bits;
        alive[number] = before & bits;
        members += (before & bits).count_ones();
        while left_out != 0 {
            gone(number as Slot * 64 + left_out.trailing_zeros());
            left_out &= left_out - 1;
        }
    };
    if let Some(cells) = set.bitmap() {
        let bits = |n: usize| cells.get(n).map_or(0, |c| c.load(Ordering::Acquire));
        (0..words).for_each(|number| keep(number, bits(number)));
    } else {
        scratch.clear();
        scratch.resize(words, 0);
        set.for_each(|slot| {
            if let Some(bits) = scratch.get_mut(slot as usize / 64) {
                *bits |= 1 << (slot % 64);
            }
        });
        (0..words).for_each(|number| keep(number, scratch[number]));
    }
    members
}

impl Alive {
    fn set(&mut self, starts: &[(Slot, u64)]) {
        let mut few = [0; 4];
        if starts.len() <= few.len() {
            few.iter_mut().zip(starts).for_each(|(place, &(slot, _))| *place = slot);
            if let Some(word) = sets::lanes(&few[..starts.len()]) {
                *self = Alive::Lanes(word);
                return;
            }
        }
        let mut bits = vec![0; starts.last().map_or(0, |&(slot, _)| slot as usize / 64 + 1)];
        starts.iter().for_each(|&(slot, _)| bits[slot as usize / 64] |= 1 << (slot % 64));
        *self = Alive::Bits(bits);
    }

    /// From a bitmap with four members at most to lanes, where they have lanes.
    fn shrink(&mut self) {
        let mut few = [0; 4];
        let mut members = 0;
        self.for_each(|slot| {
            few[members] = slot;
            members += 1;
        });
        if let Some(word) = sets::lanes(&few[..members]) {
            *self = Alive::Lanes(word);
        }
    }

    fn for_each(&self, mut each: impl FnMut(Slot)) {
        match self {
            Alive::Lanes(word) => Set(*word).for_each(each),
            Alive::Bits(bits) => {
                for (number, &word) in bits.iter().enumerate() {
                    let mut word = word;
                    while word != 0 {
                        each(number as Slot * 64 + word.trailing_zeros());
                        word &= word - 1;
                    }
                }
            }
        }
    }
}

/// A depth, less what its hashes cover beyond their blocks.
fn push(out: &mut Vec<(u64, u64)>, info: &SlotInfo, held: u64, block_size: u64) {
    let depth = held.saturating_sub(info.lookahead().div_ceil(block_size));
    if depth > 0 {
        out.push((info.source, depth));
    }
}
