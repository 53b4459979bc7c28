//! The sets of shelves that hold a block: one word each, which grows with their number.
//!
//! Contract: a set is changed by one thread at a time (whoever holds the lock of its part of the
//! table) and read by any number of others meanwhile. A reader sees, of each shelf, whether it
//! was in the set at some moment of the read. Memory that a change replaces stays until every
//! reader that could know it has left (`crossbeam_epoch`).
//!
//! Shape of the word:
//!
//! - 0: nobody.
//! - four lanes of 16 bits, lane 0 never 0: up to four shelves, each by its number plus one, in
//!   no order. 19 of 20 blocks of workload W end here, and cost no memory beyond the word.
//! - lane 0 all ones: the other 48 bits are the address of a `Spill`, a list of numbers, or a
//!   bitmap where that is smaller. Both are changed in place, cell by cell; only growing or
//!   turning a list into a bitmap makes a new one.
//!
//! Why not sorted lists replaced as a whole: the 32 blocks of a shared prompt are in the set of
//! every source, and copying 100 numbers to add one cost more than all else of an `apply`.

use crossbeam_epoch::Guard;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// A shelf's number within its model.
pub type Slot = u32;

const LANES: u32 = 4;
const SPILLED: u64 = 0xffff;
/// Numbers from here on have no lane.
pub const LANE_SLOTS: Slot = 0xfffe;
const FIRST_LIST_CELLS: usize = 4;
const IS_BITMAP: u64 = 1 << 63;
const HALF: u64 = 0xffff_ffff;

fn lane(word: u64, number: u32) -> u64 {
    (word >> (16 * number)) & 0xffff
}

fn is_spilled(word: u64) -> bool {
    word & 0xffff == SPILLED
}

/// A set as a reader found it. It must not outlive the pin under which its word was read.
#[derive(Clone, Copy)]
pub struct Set(pub u64);

impl Set {
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn contains(self, slot: Slot) -> bool {
        match Spill::of(self.0) {
            None => slot < LANE_SLOTS && (0..LANES).any(|n| lane(self.0, n) == u64::from(slot) + 1),
            Some(spill) => spill.contains(slot),
        }
    }

    /// Call `each` with every member, once.
    pub fn for_each(self, mut each: impl FnMut(Slot)) {
        match Spill::of(self.0) {
            None => (0..LANES).map(|n| lane(self.0, n)).filter(|&l| l != 0).for_each(|l| {
                each(l as Slot - 1);
            }),
            Some(spill) => spill.for_each(each),
        }
    }

    /// The words of a bitmap, where the set is one.
    pub fn bitmap(self) -> Option<&'static [AtomicU64]> {
        Spill::of(self.0).filter(|spill| spill.is_bitmap()).map(|spill| spill.cells())
    }

    pub fn len(self) -> usize {
        let mut members = 0;
        self.for_each(|_| members += 1);
        members
    }
}

/// Up to four members of a set in a word of their own, for a walk.
pub fn lanes(members: &[Slot]) -> Option<u64> {
    if members.len() > LANES as usize || members.iter().any(|&slot| slot >= LANE_SLOTS) {
        return None;
    }
    Some(members.iter().enumerate().map(|(n, &s)| (u64::from(s) + 1) << (16 * n)).sum())
}

/// What is left of lanes without one member.
pub fn without_lane(word: u64, slot: Slot) -> u64 {
    let number = (0..LANES).find(|&n| lane(word, n) == u64::from(slot) + 1);
    number.map_or(word, |n| drop_lane(word, n))
}

/// Take a lane out and move the ones above it down, so that lane 0 stays filled.
fn drop_lane(word: u64, number: u32) -> u64 {
    let below = word & ((1u64 << (16 * number)) - 1);
    let above = (word >> (16 * number)) >> 16;
    below | (above << (16 * number))
}

/// Put a shelf into the set at `cell`; false where it was in it already.
/// The caller is the only one that changes it.
pub fn insert(cell: &AtomicU64, slot: Slot, guard: &Guard) -> bool {
    let word = cell.load(Ordering::Relaxed);
    if Set(word).contains(slot) {
        return false;
    }
    if !is_spilled(word) {
        let used = (0..LANES).filter(|&n| lane(word, n) != 0).count() as u32;
        if used < LANES && slot < LANE_SLOTS {
            cell.store(word | ((u64::from(slot) + 1) << (16 * used)), Ordering::Release);
            return true;
        }
    } else if Spill::of(word).is_some_and(|spill| spill.put(slot)) {
        return true;
    }
    cell.store(Spill::with(Set(word), slot).word(), Ordering::Release);
    retire(word, guard);
    true
}

/// Take a shelf out; whether it was in it.
pub fn remove(cell: &AtomicU64, slot: Slot, guard: &Guard) -> bool {
    let word = cell.load(Ordering::Relaxed);
    let Some(spill) = Spill::of(word) else {
        let left = without_lane(word, slot);
        cell.store(left, Ordering::Release);
        return left != word;
    };
    if !spill.take(slot) {
        return false;
    }
    // Two fewer than fit into lanes, so that one that comes and goes does not copy each time.
    let mut few = [0; 2];
    let mut members = 0;
    spill.for_each(|member| {
        if members < few.len() {
            few[members] = member;
        }
        members += 1;
    });
    if members <= few.len()
        && let Some(left) = lanes(&few[..members])
    {
        cell.store(left, Ordering::Release);
        retire(word, guard);
    }
    true
}

/// Free what a word points to, once every reader that could know it has left.
pub fn retire(word: u64, guard: &Guard) {
    if let Some(spill) = Spill::of(word) {
        // SAFETY: the word is in no table any more; readers that saw it are pinned.
        unsafe { guard.defer_unchecked(move || spill.free()) };
    }
}

/// Free what a word points to, at once; nobody else knows it.
pub fn free(word: u64) {
    if let Some(spill) = Spill::of(word) {
        spill.free();
    }
}

/// A set with memory of its own: a header cell, then cells of two numbers each or of 64 bits.
///
/// The header says whether it is a bitmap, and how many cells follow; it never changes.
/// A number stands in a list as itself plus one; 0 is a free place.
#[derive(Clone, Copy)]
struct Spill(NonNull<AtomicU64>);

// SAFETY: it is only sent into the deferred call that frees it.
unsafe impl Send for Spill {}

impl Spill {
    fn of(word: u64) -> Option<Spill> {
        if !is_spilled(word) {
            return None;
        }
        NonNull::new(std::ptr::with_exposed_provenance_mut((word >> 16) as usize)).map(Spill)
    }

    fn word(self) -> u64 {
        ((self.0.as_ptr().expose_provenance() as u64) << 16) | SPILLED
    }

    fn layout(cells: usize) -> Layout {
        Layout::array::<AtomicU64>(cells + 1).expect("a set is far smaller than memory")
    }

    fn new(cells: usize, is_bitmap: bool) -> Spill {
        let layout = Self::layout(cells);
        // SAFETY: the layout is not empty; zeros are valid for AtomicU64.
        let start = unsafe { alloc_zeroed(layout) }.cast::<AtomicU64>();
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        let header = cells as u64 | if is_bitmap { IS_BITMAP } else { 0 };
        // SAFETY: just allocated, header included.
        unsafe { start.as_ref() }.store(header, Ordering::Relaxed);
        Spill(start)
    }

    fn free(self) {
        let layout = Self::layout(self.cells().len());
        // SAFETY: made by `new` with this layout, and nobody else knows it any more.
        unsafe { dealloc(self.0.as_ptr().cast(), layout) };
    }

    fn header(&self) -> u64 {
        // SAFETY: the header was written before the set was published.
        unsafe { self.0.as_ref() }.load(Ordering::Relaxed)
    }

    fn is_bitmap(&self) -> bool {
        self.header() & IS_BITMAP != 0
    }

    fn cells(&self) -> &'static [AtomicU64] {
        let count = (self.header() & !IS_BITMAP) as usize;
        // SAFETY: so many cells follow the header. 'static stands for "as long as the pin".
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().add(1), count) }
    }

    fn contains(&self, slot: Slot) -> bool {
        if self.is_bitmap() {
            let cell = self.cells().get(slot as usize / 64);
            return cell.is_some_and(|c| c.load(Ordering::Acquire) >> (slot % 64) & 1 == 1);
        }
        let wanted = u64::from(slot) + 1;
        self.cells().iter().any(|cell| {
            let pair = cell.load(Ordering::Acquire);
            pair & HALF == wanted || pair >> 32 == wanted
        })
    }

    fn for_each(&self, mut each: impl FnMut(Slot)) {
        let is_bitmap = self.is_bitmap();
        for (number, cell) in self.cells().iter().enumerate() {
            let mut bits = cell.load(Ordering::Acquire);
            if is_bitmap {
                while bits != 0 {
                    each(number as Slot * 64 + bits.trailing_zeros());
                    bits &= bits - 1;
                }
                continue;
            }
            for half in [bits & HALF, bits >> 32] {
                if half != 0 {
                    each(half as Slot - 1);
                }
            }
        }
    }

    /// Put in a number that is not in it; false where there is no place for it.
    fn put(&self, slot: Slot) -> bool {
        if self.is_bitmap() {
            let Some(cell) = self.cells().get(slot as usize / 64) else { return false };
            cell.fetch_or(1 << (slot % 64), Ordering::Release);
            return true;
        }
        for cell in self.cells() {
            let pair = cell.load(Ordering::Relaxed);
            for shift in [0, 32] {
                if (pair >> shift) & HALF == 0 {
                    cell.store(pair | ((u64::from(slot) + 1) << shift), Ordering::Release);
                    return true;
                }
            }
        }
        false
    }

    fn take(&self, slot: Slot) -> bool {
        if self.is_bitmap() {
            let Some(cell) = self.cells().get(slot as usize / 64) else { return false };
            let bit = 1 << (slot % 64);
            return cell.fetch_and(!bit, Ordering::Release) & bit != 0;
        }
        for cell in self.cells() {
            let pair = cell.load(Ordering::Relaxed);
            for shift in [0, 32] {
                if (pair >> shift) & HALF == u64::from(slot) + 1 {
                    cell.store(pair & !(HALF << shift), Ordering::Release);
                    return true;
                }
            }
        }
        false
    }

    /// A new one with all members of a set and one more.
    fn with(set: Set, slot: Slot) -> Spill {
        let (mut members, mut highest) = (1, slot);
        set.for_each(|member| {
            members += 1;
            highest = highest.max(member);
        });
        let list_cells = (members * 3 / 4).max(FIRST_LIST_CELLS);
        let bitmap_cells = highest as usize / 64 + 1;
        let spill = if bitmap_cells <= list_cells {
            Spill::new(bitmap_cells, true)
        } else {
            Spill::new(list_cells, false)
        };
        set.for_each(|member| {
            spill.put(member);
        });
        spill.put(slot);
        spill
    }
}
