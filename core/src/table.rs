//! The table of a model: block key → the set of shelves that hold the block.
//!
//! Contract: readers take no lock and never wait, whatever is being put in, taken out or grown.
//! Writers lock one of 256 parts, for one block at a time. What a reader sees of a key is what
//! stood there at one moment.
//!
//! Shape: each part is open addressing over lines of four 16-byte places, filled in their order, in
//! an array that is made anew, half full at most, when seven in ten are used. A key stays
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
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

const PARTS: usize = 256;
const CLASSES: usize = 64;
/// Arrays begin at cache lines, which leaves six bits of their address for their class of size.
const CLASS_BITS: usize = size_of::<Line>() - 1;
const LINE_PLACES: usize = 4;
const PAGE_LINES: u64 = (pages::PAGE_BYTES / size_of::<Line>()) as u64;

/// Lines in an array of each class: from 2 on, each a third more than the one before; whole pages
/// of them from the first on.
static LINES: [u32; CLASSES] = lines();

const fn lines() -> [u32; CLASSES] {
    let mut sizes = [0; CLASSES];
    let mut size: u64 = 2;
    let mut class = 0;
    while class < CLASSES {
        sizes[class] = size as u32;
        size += size.div_ceil(3);
        if size > PAGE_LINES {
            size = size.next_multiple_of(PAGE_LINES);
        }
        class += 1;
    }
    sizes
}

/// A key, 0 where free, and its set.
#[repr(C)]
struct Place {
    key: AtomicU64,
    set: AtomicU64,
}

/// Places are filled in their order.
#[repr(C, align(64))]
struct Line([Place; LINE_PLACES]);

static EMPTY: Line =
    Line([const { Place { key: AtomicU64::new(0), set: AtomicU64::new(0) } }; LINE_PLACES]);

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

/// The line where a key is looked for first, found ahead of the look-up; good for as long as the
/// pin.
#[derive(Clone, Copy)]
pub struct Spot {
    key: u64,
    line: *const Line,
    /// The array that the line is in, as it was published.
    array: *mut Line,
    part: u8,
}

impl Spot {
    pub const NOWHERE: Spot = Spot { key: 1, line: &raw const EMPTY, array: null_mut(), part: 0 };
}

/// An array of lines. It begins at a page or, while it is small, at an address of 64 bytes.
#[derive(Clone, Copy)]
struct Array {
    start: NonNull<Line>,
    lines: usize,
}

// SAFETY: it is only sent into the deferred call that frees it.
unsafe impl Send for Array {}

impl Array {
    #[inline(always)]
    fn of(tagged: *mut Line) -> Option<Array> {
        let start = NonNull::new(tagged.map_addr(|address| address & !CLASS_BITS))?;
        Some(Array { start, lines: LINES[tagged.addr() & CLASS_BITS] as usize })
    }

    /// A new array of this class, as it is published.
    fn make(class: usize) -> *mut Line {
        let start = memory::zeroed::<Line>(LINES[class] as usize);
        start.as_ptr().map_addr(|address| address | class)
    }

    fn free(self) {
        // SAFETY: made by `make` with as many lines, and nobody else knows it any more.
        unsafe { memory::free(self.start, self.lines) };
    }

    fn all(&self) -> &[Line] {
        // SAFETY: so many lines were allocated and zeroed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.lines) }
    }

    fn places(&self) -> usize {
        self.lines * LINE_PLACES
    }

    #[inline(always)]
    fn first(&self, mixed: u64) -> usize {
        (((mixed & 0xffff_ffff) * self.lines as u64) >> 32) as usize
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.lines { 0 } else { at + 1 }
    }

    /// The place of a key, or the free one where it would go. At least one is always free.
    #[inline]
    fn find(&self, mixed: u64, key: u64) -> (&Place, bool) {
        let mut at = self.first(mixed);
        loop {
            let line = &self.all()[at];
            let (place, held) = line.find(key);
            if place < LINE_PLACES {
                return (&line.0[place], held == key);
            }
            at = self.next(at);
        }
    }

    /// The set of a key, as a word.
    fn get(&self, mixed: u64, key: u64) -> u64 {
        let mut at = self.first(mixed);
        loop {
            match self.all()[at].get(key) {
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
    arrays: Box<[AtomicPtr<Line>; PARTS]>,
    fills: Box<[Mutex<Fill>; PARTS]>,
}

impl Table {
    pub fn new(names: Names) -> Self {
        Table {
            names,
            arrays: Box::new([const { AtomicPtr::new(null_mut()) }; PARTS]),
            fills: Box::new([const { Mutex::new(Fill { used: 0, live: 0 }) }; PARTS]),
        }
    }

    /// (the key as it is kept, its mixed bits, its part). 0 is kept as 1: it marks free places.
    #[inline(always)]
    fn place_of(&self, key: u64) -> (u64, u64, u8) {
        let kept = key.max(1);
        let mixed = self.names.mix(kept);
        (kept, mixed, (mixed >> 56) as u8)
    }

    fn array(&self, part: u8) -> *mut Line {
        self.arrays[usize::from(part)].load(Ordering::Acquire)
    }

    /// Find a key's line, and have its memory fetched, for a look-up soon after.
    #[inline(always)]
    pub fn seek(&self, key: u64, _pin: &Guard) -> Spot {
        let (key, mixed, part) = self.place_of(key);
        let tagged = self.array(part);
        let line = Array::of(tagged)
            .map_or(&raw const EMPTY, |array| &raw const array.all()[array.first(mixed)]);
        memory::prefetch(line);
        Spot { key, line, array: tagged, part }
    }

    /// Who holds the block that a spot is of. The set is good for as long as the pin, which must
    /// be the one of `seek`.
    #[inline(always)]
    pub fn look(&self, spot: &Spot, pin: &Guard) -> Set {
        // SAFETY: `seek` found it under this pin: until it ends, its array is not freed.
        let (found, go_on) = unsafe { &*spot.line }.get(spot.key);
        // An array that was replaced meanwhile no longer tells what comes.
        if go_on || self.array(spot.part) != spot.array {
            self.get(spot.key, pin)
        } else {
            Set(found)
        }
    }

    /// Who holds a block. The set is good for as long as the pin.
    #[cold]
    pub fn get(&self, key: u64, _pin: &Guard) -> Set {
        let (key, mixed, part) = self.place_of(key);
        Set(Array::of(self.array(part)).map_or(0, |array| array.get(mixed, key)))
    }

    /// Put a block on a shelf. Returns (it was not there yet, nobody had it yet).
    pub fn insert(&self, key: u64, slot: Slot, pin: &Guard) -> (bool, bool) {
        let (key, mixed, part) = self.place_of(key);
        let mut fill = self.fills[usize::from(part)].lock();
        let mut array = Array::of(self.array(part));
        if let Some(there) = array
            && let (place, true) = there.find(mixed, key)
        {
            let was_empty = place.set.load(Ordering::Relaxed) == 0;
            let added = sets::insert(&place.set, slot, pin);
            fill.live += usize::from(was_empty);
            return (added, was_empty);
        }
        if array.is_none_or(|array| (fill.used + 1) * 10 > array.places() * 7) {
            array = self.rebuild(part, &mut fill, 1, pin);
        }
        let array = array.expect("an array with room for one more");
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
        let Some(array) = Array::of(self.array(part)) else {
            return (false, false);
        };
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
    fn rebuild(
        &self,
        part: u8,
        fill: &mut MutexGuard<Fill>,
        more: usize,
        pin: &Guard,
    ) -> Option<Array> {
        let old = Array::of(self.array(part));
        let wanted = fill.live + more;
        let class = LINES.iter().position(|&lines| lines as usize * LINE_PLACES >= wanted * 2);
        let new = if wanted == 0 { null_mut() } else { Array::make(class.unwrap_or(CLASSES - 1)) };
        let array = Array::of(new);
        for place in old.iter().flat_map(Array::all).flat_map(|line| &line.0) {
            let set = place.set.load(Ordering::Relaxed);
            if set != 0
                && let Some(array) = &array
            {
                let key = place.key.load(Ordering::Relaxed);
                let (free, _) = array.find(self.names.mix(key), key);
                free.set.store(set, Ordering::Relaxed);
                free.key.store(key, Ordering::Relaxed);
            }
        }
        fill.used = fill.live;
        self.arrays[usize::from(part)].store(new, Ordering::Release);
        if let Some(old) = old {
            // SAFETY: no longer published; readers that saw it are pinned.
            unsafe { pin.defer_unchecked(move || old.free()) };
        }
        array
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        for array in self.arrays.iter_mut().filter_map(|tagged| Array::of(*tagged.get_mut())) {
            let places = array.all().iter().flat_map(|line| &line.0);
            places.for_each(|place| sets::free(place.set.load(Ordering::Relaxed)));
            array.free();
        }
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
        assert!(table.arrays.iter().all(|array| array.load(Ordering::Relaxed).is_null()));
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
                for key in 0..500 {
                    let spot = table.seek(key * 1000, pin);
                    let set = table.look(&spot, pin);
                    assert!(set.contains(3));
                    assert!(set.len() <= 3);
                }
            }
        });
    }
}
