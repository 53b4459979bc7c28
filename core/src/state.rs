//! What one source holds, as far as its events said.
//!
//! Contract: as the reference's `source_state.py`. A hash means one block key on whatever shelf it
//! stands; further stores of it are copies; two hashes may mean one key; a hash that is stored
//! again with other content is believed in neither. Knows no event and no other source.
//!
//! Shape: per shelf one table, engine hash → block key (`entries`), and two small maps that are
//! nearly always empty: copies beyond the first, hashes of equal meaning beyond the first. Here are
//! groups and shelves; blocks come and go in `blocks`. A clear replaces the state as a whole; the
//! old one is then swept off the model's table (`sweep`) by whoever cleared it, with no lock held.

mod blocks;
mod sweep;

use crate::entries::Entries;
use crate::model::{Model, SlotInfo};
use crate::names::Names;
use crate::orphans::Orphans;
use crate::sets::Slot;
use crossbeam_epoch::Guard;
use std::collections::HashMap;
use std::sync::Arc;

/// The medium that counts for depth, and that an event without one means.
pub const GPU: &str = "GPU";
/// Groups are numbered below this.
pub const MAX_GROUPS: i128 = 64;
/// Of one source: bounds how many slots a hostile one can take.
pub const MAX_SHELVES: usize = 64;
const INDEXED_KINDS: [&str; 3] = ["full_attention", "mla_attention", "sink_full_attention"];

/// One (medium, group), and the blocks that stand there.
pub struct Shelf {
    pub medium: Box<str>,
    pub group: u8,
    slot: Slot,
    info: Arc<SlotInfo>,
    /// Tokens per block of the last block placed here; 0 before one.
    pub block_size: u64,
    blocks: Entries,
    /// Name → copies beyond the first.
    more: HashMap<u64, u64>,
    /// Key → names here that mean it, beyond the first.
    twins: HashMap<u64, u64>,
    /// All copies of all blocks.
    pub placements: u64,
}

impl Shelf {
    /// (name, key) of every block, in no order.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, u64)> {
        self.blocks.pairs()
    }

    /// (name, copies beyond the first) of blocks that have some, in no order.
    pub fn more(&self) -> impl Iterator<Item = (u64, u64)> {
        self.more.iter().map(|(&name, &copies)| (name, copies))
    }
}

/// Groups whose kind was named, and those of them that keep every block of a prefix.
#[derive(Clone, Copy, Default)]
struct Kinds {
    named: u64,
    indexed: u64,
}

/// See the module.
pub struct State {
    source: u64,
    model: Arc<Model>,
    names: Names,
    pub shelves: Vec<Shelf>,
    /// The shelf whose blocks are the source's depth.
    counted: Option<usize>,
    pub orphans: Orphans,
    pub full: bool,
    lookahead: u64,
    kinds: Kinds,
    /// Changes of the index's size that it has not been told yet.
    blocks_added: i64,
    bytes_added: i64,
}

impl State {
    pub fn new(source: u64, model: Arc<Model>, names: Names) -> Self {
        State {
            source,
            model,
            names,
            shelves: Vec::new(),
            counted: None,
            orphans: Orphans::default(),
            full: false,
            lookahead: 0,
            kinds: Kinds::default(),
            blocks_added: 0,
            bytes_added: 0,
        }
    }

    /// An empty state of the same source.
    pub fn emptied(&self) -> Self {
        State::new(self.source, self.model.clone(), self.names)
    }

    /// Nothing was said of it yet.
    pub fn is_blank(&self) -> bool {
        self.shelves.is_empty()
            && self.kinds.named == 0
            && self.orphans.is_empty()
            && self.lookahead == 0
    }

    /// Groups that named a kind, and those of them that are indexed; a bit each.
    pub fn kinds(&self) -> (u64, u64) {
        (self.kinds.named, self.kinds.indexed)
    }

    pub fn set_kinds(&mut self, named: u64, indexed: u64) {
        self.kinds = Kinds { named, indexed };
    }

    pub fn lookahead(&self) -> u64 {
        self.lookahead
    }

    /// The state after AllBlocksCleared: empty, with the same groups and block sizes.
    pub fn successor(&self) -> Self {
        let mut after = self.emptied();
        after.lookahead = self.lookahead;
        after.kinds = self.kinds;
        for shelf in &self.shelves {
            let new = after.add_shelf(&shelf.medium, shelf.group);
            if shelf.block_size != 0 {
                after.note_block_size(new, shelf.block_size);
            }
        }
        after
    }

    pub fn block_size(&self) -> Option<u64> {
        let size = self.shelves[self.counted?].block_size;
        (size != 0).then_some(size)
    }

    /// Tell the index how much larger it is by now.
    pub fn settle(&mut self) {
        self.model.usage.add(self.blocks_added, self.bytes_added);
        (self.blocks_added, self.bytes_added) = (0, 0);
    }

    fn room_bytes(&self) -> i64 {
        self.model.usage.room_bytes().saturating_sub(self.bytes_added)
    }

    // -- groups and shelves ----------------------------------------------------------------

    /// Note what kind of group this is; whether its blocks are indexed. A group that never named
    /// a kind (vLLM 0.20 and 0.21) is indexed only if it is 0.
    pub fn learn_kind(&mut self, group: i128, kind: Option<&str>) -> bool {
        if !(0..MAX_GROUPS).contains(&group) {
            return false;
        }
        let bit = 1u64 << group;
        if let Some(kind) = kind {
            self.kinds.named |= bit;
            self.kinds.indexed &= !bit;
            if INDEXED_KINDS.contains(&kind) {
                self.kinds.indexed |= bit;
            }
        }
        if self.kinds.named & bit != 0 { self.kinds.indexed & bit != 0 } else { group == 0 }
    }

    /// A hash was said to cover so many tokens behind its block.
    pub fn learn_lookahead(&mut self, tokens: u64) {
        if tokens > self.lookahead {
            self.lookahead = tokens;
            self.shelves.iter().for_each(|shelf| shelf.info.set_lookahead(tokens));
        }
    }

    pub fn shelf(&self, medium: &str, group: i128) -> Option<usize> {
        let is_it = |shelf: &Shelf| i128::from(shelf.group) == group && *shelf.medium == *medium;
        self.shelves.iter().position(is_it)
    }

    /// Where blocks of an indexed group stand; None where the source has too many shelves.
    pub fn shelf_for(&mut self, medium: &str, group: i128) -> Option<usize> {
        self.shelf(medium, group).or_else(|| {
            let group = u8::try_from(group).ok()?;
            (self.shelves.len() < MAX_SHELVES).then(|| self.add_shelf(medium, group))
        })
    }

    /// A new one, of a place that has none yet.
    pub fn add_shelf(&mut self, medium: &str, group: u8) -> usize {
        let (slot, info) = self.model.take_slot(self.source, self.lookahead);
        let number = self.shelves.len();
        self.shelves.push(Shelf {
            medium: medium.into(),
            group,
            slot,
            info,
            block_size: 0,
            blocks: Entries::new(self.names),
            more: HashMap::new(),
            twins: HashMap::new(),
            placements: 0,
        });
        if medium == GPU {
            let before = self.counted.map(|counted| &self.shelves[counted]);
            if before.is_none_or(|before| group < before.group) {
                if let Some(before) = before {
                    self.model.count(&before.info, 0);
                }
                self.counted = Some(number);
            }
        }
        number
    }

    /// The size of a block just placed: depth is in blocks of the last one's size.
    pub fn note_block_size(&mut self, shelf: usize, block_size: u64) {
        if self.shelves[shelf].block_size != block_size {
            self.shelves[shelf].block_size = block_size;
            if self.counted == Some(shelf) {
                self.model.count(&self.shelves[shelf].info, block_size);
            }
        }
    }

    // -- looking ------------------------------------------------------------------------

    /// The block key that a hash means; None where no shelf holds it.
    pub fn meaning(&self, name: u64) -> Option<u64> {
        self.shelves.iter().find_map(|shelf| shelf.blocks.get(name))
    }

    /// Have memory fetched for a block that is placed soon.
    pub fn prefetch_key(&self, key: u64, pin: &Guard) {
        self.model.table.prefetch(key, pin);
    }

    /// Have memory fetched for a hash that is looked up soon.
    pub fn prefetch_name(&self, shelf: usize, name: u64) {
        self.shelves[shelf].blocks.prefetch(name);
    }

    /// … and more of it, for a hash that probably stands there.
    pub fn prefetch_entry(&self, shelf: usize, name: u64) {
        self.shelves[shelf].blocks.prefetch_entry(name);
    }

    /// Have memory fetched for a block that is taken soon; its hash should be at hand by now.
    pub fn prefetch_held(&self, shelf: usize, name: u64, pin: &Guard) {
        if let Some(key) = self.shelves[shelf].blocks.get(name) {
            self.model.table.prefetch(key, pin);
        }
    }

    /// The shelf that most events are about.
    pub fn usual_shelf(&self) -> Option<usize> {
        self.counted
    }
}
