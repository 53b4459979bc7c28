//! The table of a model: block key → the set of shelves that hold the block.
//!
//! Contract: readers take no lock and never wait, whatever is being put in, taken out or grown.
//! Writers lock one of 256 parts, for one block at a time. What a reader sees of a key is what
//! stood there at one moment.
//!
//! Shape: each part is open addressing over lines of four 16-byte places, filled in their order, in
//! an array that is made anew, half full or a little more, when 55 to 70 % are used. A key stays
//! where it was put: taking the last shelf out leaves the key with an empty set, which the same key
//! may fill again and no other. So a reader that found its key can trust what stands beside it.
//! Dead keys go when the array is full and is written anew; the old one is freed when its readers
//! have left.
//!
//! Why: with a lock per look-up, match of 128k tokens took twice its time; a version per part that
//! readers check (a seqlock) lets a reader spin behind a writer that lost its processor.

mod ahead;
mod array;

use crate::memory;
use crate::names::Names;
use crate::sets::{self, Set, Slot};
pub use ahead::Ahead;
use array::{Array, LINE_PLACES, Line};
use crossbeam_epoch::Guard;
use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

const PARTS: usize = 256;

/// How much of a part's array is in use.
#[derive(Default)]
struct Fill {
    /// Places with a key.
    used: usize,
    /// … and a set that is not empty.
    live: usize,
}

/// The line where a key is looked for first.
#[derive(Clone, Copy)]
struct Spot {
    key: u64,
    line: *const Line,
}

/// See the module.
pub struct Table {
    names: Names,
    arrays: Box<[AtomicPtr<*mut Line>; PARTS]>,
    fills: Box<[Mutex<Fill>; PARTS]>,
    /// Of parts that have none.
    empty: Array,
    /// Raised after an array was replaced, before anything is put into the new one.
    replaced: AtomicU64,
}

// SAFETY: what `empty` points to is as free to share as the other arrays.
unsafe impl Sync for Table {}
unsafe impl Send for Table {}

impl Table {
    pub fn new(names: Names) -> Self {
        let empty = Array::make(1);
        let pointer = empty.pointer();
        Table {
            names,
            arrays: Box::new(std::array::from_fn(|_| AtomicPtr::new(pointer))),
            fills: Box::new([const { Mutex::new(Fill { used: 0, live: 0 }) }; PARTS]),
            empty,
            replaced: AtomicU64::new(0),
        }
    }

    /// (the key as it is kept, its mixed bits, its part). 0 is kept as 1: it marks free places.
    #[inline(always)]
    fn place_of(&self, key: u64) -> (u64, u64, u8) {
        let kept = key.max(1);
        let mixed = self.names.mix(kept);
        (kept, mixed, (mixed >> 56) as u8)
    }

    #[inline(always)]
    fn array(&self, part: u8) -> Array {
        let pointer = self.arrays[usize::from(part)].load(Ordering::Acquire);
        // SAFETY: every part has an array, `empty` at least, and callers are pinned or hold the
        // part's lock.
        unsafe { Array::at(pointer) }
    }

    /// Find a key's line, and have its memory fetched.
    #[inline(always)]
    fn seek(&self, key: u64) -> Spot {
        let (key, mixed, part) = self.place_of(key);
        let array = self.array(part);
        let line = &raw const *array.line(array.first(mixed));
        memory::prefetch(line);
        Spot { key, line }
    }

    /// Have the memory of a key fetched, for a look-up soon after.
    #[inline]
    pub fn prefetch(&self, key: u64, _pin: &Guard) {
        self.seek(key);
    }

    /// Who holds a block. The set is good for as long as the pin.
    #[cold]
    pub fn get(&self, key: u64, _pin: &Guard) -> Set {
        let (key, mixed, part) = self.place_of(key);
        let array = self.array(part);
        Set(array.get(array.first(mixed), key))
    }

    /// Put a block on a shelf. Returns (it was not there yet, nobody had it yet).
    pub fn insert(&self, key: u64, slot: Slot, pin: &Guard) -> (bool, bool) {
        let (key, mixed, part) = self.place_of(key);
        let mut fill = self.fills[usize::from(part)].lock();
        let mut array = self.array(part);
        if let (place, true) = array.find(mixed, key) {
            let was_empty = place.set.load(Ordering::Relaxed) == 0;
            let added = sets::insert(&place.set, slot, pin);
            fill.live += usize::from(was_empty);
            return (added, was_empty);
        }
        if array == self.empty || (fill.used + 1) * 100 > array.places() * percent_full(part) {
            array = self.rebuild(part, &mut fill, 1, pin);
        }
        let (place, _) = array.find(mixed, key);
        sets::insert(&place.set, slot, pin);
        place.key.store(key, Ordering::Release);
        fill.used += 1;
        fill.live += 1;
        (true, true)
    }

    /// Take a block off a shelf. Returns (it was there, nobody has it any more).
    pub fn remove(&self, key: u64, slot: Slot, pin: &Guard) -> (bool, bool) {
        let (key, mixed, part) = self.place_of(key);
        let mut fill = self.fills[usize::from(part)].lock();
        let array = self.array(part);
        let (place, true) = array.find(mixed, key) else { return (false, false) };
        if !sets::remove(&place.set, slot, pin) {
            return (false, false);
        }
        let gone = place.set.load(Ordering::Relaxed) == 0;
        if gone {
            fill.live -= 1;
            if fill.live * 6 < array.places() && (array.places() > 32 || fill.live == 0) {
                self.rebuild(part, &mut fill, 0, pin);
            }
        }
        (true, gone)
    }

    /// Write a part anew without its dead keys, with room for `more`.
    fn rebuild(&self, part: u8, fill: &mut MutexGuard<Fill>, more: usize, pin: &Guard) -> Array {
        let old = self.array(part);
        let wanted = fill.live + more;
        let lines = (wanted * 122).div_ceil(percent_full(part) * LINE_PLACES) + 1;
        let new = if wanted == 0 { self.empty } else { Array::make(lines) };
        for place in old.all_places() {
            let set = place.set.load(Ordering::Relaxed);
            if set != 0 {
                let key = place.key.load(Ordering::Relaxed);
                let (free, _) = new.find(self.names.mix(key), key);
                free.set.store(set, Ordering::Relaxed);
                free.key.store(key, Ordering::Relaxed);
            }
        }
        fill.used = fill.live;
        self.arrays[usize::from(part)].store(new.pointer(), Ordering::Release);
        self.replaced.fetch_add(1, Ordering::Release);
        if old != self.empty {
            // SAFETY: no longer published; readers that saw it are pinned.
            unsafe { pin.defer_unchecked(move || old.free()) };
        }
        new
    }
}

/// How much of a part's array is used before it grows by a fifth or more. All parts fill at the
/// same pace: so they do not grow at the same time.
fn percent_full(part: u8) -> usize {
    52 + usize::from(part % 16)
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: every part has an array, and nobody else knows of them any more.
        let arrays = self.arrays.iter_mut().map(|array| unsafe { Array::at(*array.get_mut()) });
        for array in arrays.filter(|&array| array != self.empty) {
            array.all_places().for_each(|place| sets::free(place.set.load(Ordering::Relaxed)));
            array.free();
        }
        self.empty.free();
    }
}

#[cfg(test)]
mod tests {
    use super::array::PAGE_LINES;
    use super::*;
    use std::collections::{BTreeSet, HashMap};

    fn members(set: Set) -> BTreeSet<Slot> {
        let mut all = BTreeSet::new();
        set.for_each(|slot| assert!(all.insert(slot)));
        all
    }

    /// Keys and shelves by a fixed rule, so that sets of every size come and go.
    #[test]
    fn a_table_is_a_map_of_sets() {
        let table = Table::new(Names::new());
        let mut naive: HashMap<u64, BTreeSet<Slot>> = HashMap::new();
        let mut state = 7u64;
        for step in 0..100_000u64 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let key = (state >> 33) % if step < 50_000 { 3000 } else { 50 } + 2;
            let slot = match (state >> 20) % 10 {
                0 => 70_000 + (state >> 50) as Slot % 3,
                n => (state >> 40) as Slot % (n as Slot * 20),
            };
            let pin = &crossbeam_epoch::pin();
            let held = naive.entry(key).or_default();
            if (state >> 60) < 9 {
                let was_empty = held.is_empty();
                let added = held.insert(slot);
                assert_eq!(table.insert(key, slot, pin), (added, was_empty));
            } else {
                let was = held.remove(&slot);
                assert_eq!(table.remove(key, slot, pin), (was, was && held.is_empty()));
            }
            assert_eq!(&members(table.get(key, pin)), held);
            assert_eq!(table.get(key, pin).contains(slot), held.contains(&slot));
        }
        let pin = &crossbeam_epoch::pin();
        for (key, held) in naive {
            assert_eq!(members(table.get(key, pin)), held);
            held.iter().for_each(|&slot| assert!(table.remove(key, slot, pin).0));
        }
        assert!((0..=255).all(|part| table.array(part) == table.empty));
    }

    #[test]
    fn arrays_of_many_pages_keep_every_key() {
        let table = Table::new(Names::new());
        let pin = &mut crossbeam_epoch::pin();
        let keys = || (1..400_000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        keys().for_each(|key| assert_eq!(table.insert(key, key as u32 % 9, pin), (true, true)));
        assert!((0..=255).all(|part| table.array(part).lines() > PAGE_LINES));
        pin.repin();
        keys().for_each(|key| assert!(table.get(key, pin).contains(key as u32 % 9)));
        keys().for_each(|key| assert_eq!(table.remove(key, key as u32 % 9, pin), (true, true)));
        assert!((0..=255).all(|part| table.array(part) == table.empty));
    }
}
