//! Arrays of lines, the memory of one part of a table: places of a key and its set.
//!
//! Contract: places are filled in their order, in the key's line and those behind it, and a key
//! stays where it was put. Anybody may read while one thread at a time, whoever holds the part's
//! lock, changes what stands in a place. Who does that, and when an array that was replaced is
//! freed, is known to the table.

use crate::memory;
use crate::pages;
use std::hint::select_unpredictable;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

pub const LINE_PLACES: usize = 4;
pub const PAGE_LINES: usize = pages::LARGE_PAGE_BYTES / size_of::<Line>();

/// A key, 0 where free, and its set.
#[repr(C)]
pub struct Place {
    pub key: AtomicU64,
    pub set: AtomicU64,
}

/// Places are filled in their order.
#[repr(C, align(64))]
pub struct Line([Place; LINE_PLACES]);

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
    pub fn get(&self, key: u64) -> (u64, bool) {
        let mut found = 0;
        for place in &self.0 {
            let is_it = place.key.load(Ordering::Acquire) == key;
            found = select_unpredictable(is_it, place.set.load(Ordering::Acquire), found);
        }
        // A key whose set is empty stands nowhere else either.
        (found, found == 0 && self.0[LINE_PLACES - 1].key.load(Ordering::Acquire) != 0)
    }
}

/// An array of lines, in pages: how many lines they are, in the place of an address, and the
/// pages' addresses. Small enough to stay in the processor's nearest cache.
#[derive(Clone, Copy, PartialEq)]
pub struct Array(NonNull<*mut Line>);

// SAFETY: it is only sent into the deferred call that frees it.
unsafe impl Send for Array {}

impl Array {
    /// A new array of so many lines or, in whole pages, a few more.
    pub fn make(lines: usize) -> Array {
        let pages = lines.div_ceil(PAGE_LINES);
        let lines = if lines < PAGE_LINES { lines } else { pages * PAGE_LINES };
        let page = || memory::zeroed::<Line>(lines.min(PAGE_LINES)).as_ptr();
        let length = std::ptr::without_provenance_mut(lines);
        let all: Box<[*mut Line]> =
            std::iter::once(length).chain((0..pages).map(|_| page())).collect();
        Array(NonNull::from(Box::leak(all)).cast())
    }

    /// Where it is kept, for readers to find it there.
    #[inline(always)]
    pub fn pointer(self) -> *mut *mut Line {
        self.0.as_ptr()
    }

    /// The array of a `pointer`.
    ///
    /// # Safety
    /// It must be of an array that is not freed while this one is used.
    #[inline(always)]
    pub unsafe fn at(pointer: *mut *mut Line) -> Array {
        // SAFETY: no `pointer` is null.
        Array(unsafe { NonNull::new_unchecked(pointer) })
    }

    /// Give its memory back, but not that of the sets in it. Nobody else may know it any more.
    pub fn free(self) {
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
    pub fn lines(self) -> usize {
        // SAFETY: the first word is always there.
        unsafe { self.0.read() }.addr()
    }

    #[inline(always)]
    pub fn line(&self, at: usize) -> &Line {
        debug_assert!(at < self.lines());
        // SAFETY: callers stay below its length; lines are zeroed at least, and changed as atomics
        // only.
        unsafe { &*self.0.add(1 + at / PAGE_LINES).read().add(at % PAGE_LINES) }
    }

    pub fn all_places(&self) -> impl Iterator<Item = &Place> {
        (0..self.lines()).flat_map(|at| &self.line(at).0)
    }

    pub fn places(self) -> usize {
        self.lines() * LINE_PLACES
    }

    /// The line where a key is looked for first.
    #[inline(always)]
    pub fn first(self, mixed: u64) -> usize {
        (((mixed & 0xffff_ffff) * self.lines() as u64) >> 32) as usize
    }

    fn next(self, at: usize) -> usize {
        if at + 1 == self.lines() { 0 } else { at + 1 }
    }

    /// The place of a key, or the free one where it would go. At least one is always free.
    #[inline]
    pub fn find(&self, mixed: u64, key: u64) -> (&Place, bool) {
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
    pub fn get(&self, mut at: usize, key: u64) -> u64 {
        loop {
            match self.line(at).get(key) {
                (_, true) => at = self.next(at),
                (found, false) => return found,
            }
        }
    }
}
