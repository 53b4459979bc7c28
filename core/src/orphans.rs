//! Blocks whose parent is unknown, waiting for it.
//!
//! Contract: as the reference's `orphans.py`. An orphan is never guessed to be a root, so it has
//! no key until its parent has one; the oldest go first; children of a parent come out in the
//! order in which they were parked.
//!
//! Shape: a tree by age, an index by (shelf, name) and one by parent. Orphans are few and rare:
//! nothing here is made for speed.

use crate::model::PARKED_BYTES;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A shelf's place in its source, and the name of a hash.
pub type At = (usize, u64);

/// A block whose parent is unknown.
#[derive(Debug)]
pub struct Parked {
    pub at: At,
    pub parent: u64,
    /// Little-endian, four bytes each.
    pub tokens: Box<[u8]>,
    /// Encoded.
    pub extras: Box<[u8]>,
    /// How often it was stored and not removed.
    pub copies: u64,
}

impl Parked {
    /// Its share of the index's size, however many copies.
    pub fn size_bytes(&self) -> i64 {
        PARKED_BYTES + (self.tokens.len() + self.extras.len()) as i64
    }

    /// Whether both say the same of their hash.
    pub fn is_like(&self, other: &Parked) -> bool {
        self.parent == other.parent && self.tokens == other.tokens && self.extras == other.extras
    }
}

/// The parked blocks of one source.
#[derive(Default)]
pub struct Orphans {
    by_age: BTreeMap<u64, Parked>,
    ages: HashMap<At, u64>,
    by_parent: HashMap<u64, BTreeSet<u64>>,
    next_age: u64,
    /// The share of all of them in the index's size.
    pub bytes: i64,
}

impl Orphans {
    /// Parked blocks; copies of one count once.
    pub fn len(&self) -> usize {
        self.by_age.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_age.is_empty()
    }

    pub fn oldest_first(&self) -> impl Iterator<Item = &Parked> {
        self.by_age.values()
    }

    pub fn awaits(&self, parent: u64) -> bool {
        self.by_parent.contains_key(&parent)
    }

    pub fn find(&mut self, at: At) -> Option<&mut Parked> {
        self.by_age.get_mut(self.ages.get(&at)?)
    }

    /// Park a block that is not parked yet.
    pub fn add(&mut self, block: Parked) {
        self.ages.insert(block.at, self.next_age);
        self.by_parent.entry(block.parent).or_default().insert(self.next_age);
        self.bytes += block.size_bytes();
        self.by_age.insert(self.next_age, block);
        self.next_age += 1;
    }

    /// Take out a parked block with all its copies.
    pub fn remove(&mut self, at: At) -> Option<Parked> {
        let age = self.ages.remove(&at)?;
        let block = self.by_age.remove(&age)?;
        if let Some(siblings) = self.by_parent.get_mut(&block.parent) {
            siblings.remove(&age);
            if siblings.is_empty() {
                self.by_parent.remove(&block.parent);
            }
        }
        self.bytes -= block.size_bytes();
        Some(block)
    }

    /// Drop one copy; false where none is parked.
    pub fn take_copy(&mut self, at: At) -> bool {
        let Some(block) = self.find(at) else { return false };
        block.copies -= 1;
        if block.copies == 0 {
            self.remove(at);
        }
        true
    }

    /// Drop the block that is parked longest.
    pub fn drop_oldest(&mut self) {
        if let Some(oldest) = self.by_age.values().next().map(|block| block.at) {
            self.remove(oldest);
        }
    }

    /// Take out the oldest block that waits for this parent.
    pub fn take_child(&mut self, parent: u64) -> Option<Parked> {
        let age = self.by_parent.get(&parent)?.first()?;
        let at = self.by_age.get(age)?.at;
        self.remove(at)
    }
}
