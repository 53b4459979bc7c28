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

use crate::memory;
use crate::names::Names;
use crate::pages;
use crate::sets::{self, Set, Slot};
use crossbeam_epoch::Guard;
use parking_lot::{Mutex, MutexGuard};
use std::hint::select_unpredictable;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

const PARTS: usize = 256;
const LINE_PLACES: usize = 4;
const PAGE_LINES: usize = pages::LARGE_PAGE_BYTES / size_of::<Line>();

/// A key, 0 where free, and its set.
#[repr(C)]
struct Place {
    key: AtomicU64,
    set: AtomicU64,
}

/// Places are filled in their order.
#[repr(C, align(64))]
struct Line([Place; LINE_PLACES]);

impl Line {
    /// The first place that is free or has the key, and what stands there; one too many where
    /// there is none. Without a branch too.
    #[inline(always)]
    fn find(&self, key: u64) -> (usize, u64) {
        let (mut at, mut held) = (LINE_PLACES, 0);
        for (number, place) in self.0.iter().enumerate().rev() {
            let there = place.key.load(Ordering::Acquire);
            let is_it = (there == key) | (there == 0);
            at = select_unpredictable(is_it, number, at);
            held = select_unpredictable(is_it, there, held);
        }
        (at, held)
    }

    /// The set of a key, as a word, and whether a key that is not here may be in the next line.
    /// All places are looked at, without a branch: where in it a key stands cannot be foretold.
    #[inline(always)]
    fn get(&self, key: u64) -> (u64, bool) {
        let mut found = 0;
        for place in &self.0 {
            let is_it = place.key.load(Ordering::Acquire) == key;
            found = select_unpredictable(is_it, place.set.load(Ordering::Acquire), found);
        }
        // A key whose set is empty stands nowhere else either.
        (found, found == 0 && self.0[LINE_PLACES - 1].key.load(Ordering::Acquire) != 0)
    }
}

/// The line where a key is looked for first.
#[derive(Clone, Copy)]
struct Spot {
    key: u64,
    line: *const Line,
}

/// An array of lines, in pages: how many lines they are, in the place of an address, and the
/// pages' addresses. Small enough to stay in the processor's nearest cache.
#[derive(Clone, Copy, PartialEq)]
struct Array(NonNull<*mut Line>);

// SAFETY: it is only sent into the deferred call that frees it.
unsafe impl Send for Array {}

impl Array {
    /// A new array of so many lines or, in whole pages, a few more.
    fn make(lines: usize) -> Array {
        let pages = lines.div_ceil(PAGE_LINES);
        let lines = if lines < PAGE_LINES { lines } else { pages * PAGE_LINES };
        let page = || memory::zeroed::<Line>(lines.min(PAGE_LINES)).as_ptr();
        let length = std::ptr::without_provenance_mut(lines);
        let all: Box<[*mut Line]> =
            std::iter::once(length).chain((0..pages).map(|_| page())).collect();
        Array(NonNull::from(Box::leak(all)).cast())
    }

    fn free(self) {
        let lines = self.lines();
        let words = 1 + lines.div_ceil(PAGE_LINES);
        // SAFETY: made by `make` with as many lines, and nobody else knows it any more.
        unsafe {
            let all = Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.0.as_ptr(), words));
            for page in all[1..].iter().filter_map(|&page| NonNull::new(page)) {
                memory::free(page, lines.min(PAGE_LINES));
            }
        }
    }

    #[inline(always)]
    fn lines(self) -> usize {
        // SAFETY: the first word is always there.
        unsafe { self.0.read() }.addr()
    }

    #[inline(always)]
    fn line(&self, at: usize) -> &Line {
        debug_assert!(at < self.lines());
        // SAFETY: callers stay below its length; lines are zeroed at least, and changed as atomics
        // only.
        unsafe { &*self.0.add(1 + at / PAGE_LINES).read().add(at % PAGE_LINES) }
    }

    fn all_places(&self) -> impl Iterator<Item = &Place> {
        (0..self.lines()).flat_map(|at| &self.line(at).0)
    }

    fn places(self) -> usize {
        self.lines() * LINE_PLACES
    }

    #[inline(always)]
    fn first(self, mixed: u64) -> usize {
        (((mixed & 0xffff_ffff) * self.lines() as u64) >> 32) as usize
    }

    fn next(self, at: usize) -> usize {
        if at + 1 == self.lines() { 0 } else { at + 1 }
    }

    /// The place of a key, or the free one where it would go. At least one is always free.
    #[inline]
    fn find(&self, mixed: u64, key: u64) -> (&Place, bool) {
        let mut at = self.first(mixed);
        loop {
            let line = self.line(at);
            let (place, held) = line.find(key);
            if place < LINE_PLACES {
                return (&line.0[place], held == key);
            }
            at = self.next(at);
        }
    }

    /// The set of a key, as a word, from this line on.
    fn get(&self, mut at: usize, key: u64) -> u64 {
        loop {
            match self.line(at).get(key) {
                (_, true) => at = self.next(at),
                (found, false) => return found,
            }
        }
    }
}

#[derive(Default)]
struct Fill {
    /// Places with a key.
    used: usize,
    /// … and a set that is not empty.
    live: usize,
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
        let pointer = empty.0.as_ptr();
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
        // SAFETY: every part has an array, `empty` at least.
        Array(unsafe { NonNull::new_unchecked(pointer) })
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
        self.arrays[usize::from(part)].store(new.0.as_ptr(), Ordering::Release);
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

/// Look-ups of keys in a row, each begun so far ahead that its memory is there when its turn comes.
pub struct Ahead<'a> {
    table: &'a Table,
    pin: &'a Guard,
    spots: [Spot; Ahead::MOST],
    /// As it was before the first of the spots was found.
    replaced: u64,
}

impl<'a> Ahead<'a> {
    /// Look-ups that may be under way.
    pub const MOST: usize = 16;

    pub fn new(table: &'a Table, pin: &'a Guard) -> Self {
        let replaced = table.replaced.load(Ordering::Acquire);
        Ahead { table, pin, spots: [table.seek(0); Self::MOST], replaced }
    }

    /// Begin the look-up of the key with this number.
    #[inline(always)]
    pub fn begin(&mut self, number: usize, key: u64) {
        self.spots[number % Self::MOST] = self.table.seek(key);
    }

    /// Who holds the block whose look-up began with this number, `MOST` ago at most. The set is
    /// good for as long as the pin.
    #[inline(always)]
    pub fn end(&mut self, number: usize) -> Set {
        let spot = &self.spots[number % Self::MOST];
        // SAFETY: it was found under this pin: until that ends, its array is not freed.
        let (mut found, go_on) = unsafe { &*spot.line }.get(spot.key);
        if go_on {
            found = self.go_on(spot);
        }
        // What is put into a new array does not show in the old one.
        if self.table.replaced.load(Ordering::Acquire) == self.replaced {
            Set(found)
        } else {
            self.begin_again(number)
        }
    }

    /// The set of a key that is not in its first line.
    #[inline(never)]
    fn go_on(&self, spot: &Spot) -> u64 {
        self.table.get(spot.key, self.pin).0
    }

    #[cold]
    fn begin_again(&mut self, number: usize) -> Set {
        self.replaced = self.table.replaced.load(Ordering::Acquire);
        self.spots = self.spots.map(|spot| self.table.seek(spot.key));
        self.table.get(self.spots[number % Self::MOST].key, self.pin)
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let arrays = self.arrays.iter_mut().filter_map(|array| NonNull::new(*array.get_mut()));
        for array in arrays.map(Array).filter(|&array| array != self.empty) {
            array.all_places().for_each(|place| sets::free(place.set.load(Ordering::Relaxed)));
            array.free();
        }
        self.empty.free();
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn readers_find_what_stays_while_others_come_and_go() {
        let table = Table::new(Names::new());
        let pin = &crossbeam_epoch::pin();
        (0..500).for_each(|key| {
            table.insert(key * 1000, 3, pin);
        });
        std::thread::scope(|scope| {
            let writers = [10, 60].map(|slot| {
                let table = &table;
                scope.spawn(move || {
                    let keys = || (2..5000).map(|key| if key % 10 == 0 { key * 100 } else { key });
                    for slot in slot..slot + 5 {
                        let pin = &mut crossbeam_epoch::pin();
                        keys().for_each(|key| assert!(table.insert(key, slot, pin).0));
                        pin.repin();
                        keys().for_each(|key| assert!(table.remove(key, slot, pin).0));
                    }
                })
            });
            while !writers.iter().all(|writer| writer.is_finished()) {
                let pin = &crossbeam_epoch::pin();
                let ahead = &mut Ahead::new(&table, pin);
                (0..Ahead::MOST).for_each(|key| ahead.begin(key, key as u64 * 1000));
                for key in 0..500 {
                    let set = ahead.end(key);
                    ahead.begin(key, (key + Ahead::MOST) as u64 % 500 * 1000);
                    assert!(set.contains(3));
                    assert!(set.len() <= 3);
                }
            }
        });
    }
}
