//! One model: who holds which block, and which shelves count for depth.
//!
//! A shelf is one (medium, group) of one source, from one clear of the source to the next. It has
//! a number here, its slot, that is handed out again only when it stands in no set any more.
//!
//! Contract: everything a request reads is read without a lock: the table, the list of slots and
//! the block sizes (each replaced as a whole, `arc_swap`), and what a slot is (atomics).

use crate::names::Names;
use crate::sets::Slot;
use crate::table::Table;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Bytes that a block on a shelf takes, and a block beside that, and a parked block beside its
/// tokens and extras: what the tables take at their usual filling. Counted, not measured, so that
/// equal contents are of equal size; `core/README.md` compares it with the process's memory.
pub const PLACEMENT_BYTES: i64 = 26;
pub const BLOCK_BYTES: i64 = 24;
/// Of a block that a source has copies of, beside the block itself.
pub const NOTE_BYTES: i64 = 20;
pub const PARKED_BYTES: i64 = 320;

/// The size of the whole index.
#[derive(Default)]
pub struct Usage {
    pub blocks: AtomicI64,
    pub bytes: AtomicI64,
    /// 0: no limit.
    pub limit_bytes: i64,
}

impl Usage {
    /// How much may be added; below 0 where the limit is passed.
    pub fn room_bytes(&self) -> i64 {
        match self.limit_bytes {
            0 => i64::MAX,
            limit => limit - self.bytes.load(Ordering::Relaxed),
        }
    }

    pub fn add(&self, blocks: i64, bytes: i64) {
        if blocks != 0 {
            self.blocks.fetch_add(blocks, Ordering::Relaxed);
        }
        if bytes != 0 {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

/// What readers know of a shelf. A cache line of its own: a request touches one per holder.
#[repr(align(64))]
pub struct SlotInfo {
    pub source: u64,
    /// Block size in tokens while the shelf counts for depth and has one, else 0.
    counted: AtomicU64,
    /// Tokens behind a block that its hash may cover.
    lookahead: AtomicU64,
    /// Raised after each change that can make a depth smaller.
    version: AtomicU64,
}

impl SlotInfo {
    pub fn counted(&self) -> u64 {
        self.counted.load(Ordering::Acquire)
    }

    pub fn lookahead(&self) -> u64 {
        self.lookahead.load(Ordering::Acquire)
    }

    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// A block is gone from the shelf. The order matters: what a reader can see of later changes
    /// comes after this. One thread at a time changes a shelf.
    pub fn changed(&self) {
        self.version.store(self.version.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    pub fn set_lookahead(&self, tokens: u64) {
        self.lookahead.store(tokens, Ordering::Release);
        self.changed();
    }
}

#[derive(Default)]
struct Slots {
    free: Vec<Slot>,
    sizes: Vec<(u64, usize)>,
}

/// See the module.
pub struct Model {
    pub table: Table,
    pub usage: Arc<Usage>,
    /// By slot; what stands at a free one is the shelf that had it last.
    infos: ArcSwap<Vec<Arc<SlotInfo>>>,
    /// Block sizes of counted shelves.
    sizes: ArcSwap<Vec<u64>>,
    slots: Mutex<Slots>,
}

impl Model {
    pub fn new(usage: Arc<Usage>, names: Names) -> Self {
        Model {
            table: Table::new(names),
            usage,
            infos: ArcSwap::default(),
            sizes: ArcSwap::default(),
            slots: Mutex::default(),
        }
    }

    pub fn infos(&self) -> arc_swap::Guard<Arc<Vec<Arc<SlotInfo>>>> {
        self.infos.load()
    }

    /// Sizes, in tokens, of which a source holds blocks or held some.
    pub fn sizes(&self) -> arc_swap::Guard<Arc<Vec<u64>>> {
        self.sizes.load()
    }

    /// A slot that stands in no set.
    pub fn take_slot(&self, source: u64, lookahead: u64) -> (Slot, Arc<SlotInfo>) {
        let info = Arc::new(SlotInfo {
            source,
            counted: AtomicU64::new(0),
            lookahead: AtomicU64::new(lookahead),
            version: AtomicU64::new(0),
        });
        let mut slots = self.slots.lock();
        let mut infos = Vec::clone(&self.infos.load());
        let slot = match slots.free.pop() {
            Some(slot) => {
                infos[slot as usize] = info.clone();
                slot
            }
            None => {
                infos.push(info.clone());
                infos.len() as Slot - 1
            }
        };
        self.infos.store(Arc::new(infos));
        (slot, info)
    }

    /// Give back a slot that stands in no set any more.
    pub fn free_slot(&self, slot: Slot) {
        self.slots.lock().free.push(slot);
    }

    /// From now on a shelf counts for depth in blocks of so many tokens; 0: it does not count.
    pub fn count(&self, info: &SlotInfo, block_size: u64) {
        let before = info.counted.load(Ordering::Relaxed);
        if before == block_size {
            return;
        }
        let mut slots = self.slots.lock();
        if block_size != 0 {
            match slots.sizes.iter_mut().find(|(size, _)| *size == block_size) {
                Some((_, shelves)) => *shelves += 1,
                None => slots.sizes.push((block_size, 1)),
            }
            self.publish(&slots);
        }
        info.counted.store(block_size, Ordering::Release);
        info.changed();
        if before != 0 {
            slots.sizes.iter_mut().filter(|(size, _)| *size == before).for_each(|s| s.1 -= 1);
            slots.sizes.retain(|&(_, shelves)| shelves > 0);
            self.publish(&slots);
        }
    }

    fn publish(&self, slots: &Slots) {
        let sizes: Vec<u64> = slots.sizes.iter().map(|&(size, _)| size).collect();
        if **self.sizes.load() != sizes {
            self.sizes.store(Arc::new(sizes));
        }
    }
}
