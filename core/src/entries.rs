//! A source's own table: engine hash (by its name) → block key.
//!
//! Contract: a map, for one thread at a time. Its memory can be asked for ahead of a look-up,
//! which is why it is not `hashbrown`: every message finds another source's table cold.
//!
//! Shape: groups of two cache lines: a byte of each of seven names, seven entries, and how many
//! entries had to go on to a later group because this one was full when they came. So a search for
//! what is not there, which every new block begins with, nearly always ends in its first group,
//! looks at no entry and guesses no branch; what goes leaves no mark. A table is written anew, at
//! two thirds, when seven eighths are used: 18.3 bytes for each entry, divided by 0.66 to 0.88.

use crate::memory::{self, Paged};
use crate::names::Names;

const ENTRIES: usize = 7;
const PAGE_GROUPS: usize = Paged::<Group>::PER_PAGE;
const PASSED_SHIFT: u32 = 8 * ENTRIES as u32;
/// A number of passers-by that is not counted any further, nor back.
const MANY: u64 = 0xff;
const ONES: u64 = 0x0101_0101_0101_0101;
/// The bit that is set in the byte of each entry.
const TAG_BITS: u64 = 0x0080_8080_8080_8080;

#[derive(Clone, Copy)]
struct Entry {
    name: u64,
    key: u64,
}

#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct Group {
    /// A byte for each entry, 0 where free, and in the highest the number of entries that passed
    /// by. Read and written as a whole: the processor waits where a part of what is read was just
    /// written.
    tags: u64,
    entries: [Entry; ENTRIES],
}

impl Group {
    /// The place of a name.
    #[inline(always)]
    fn find(&self, tag: u64, name: u64) -> Option<usize> {
        // The high bit of each byte that is equal; now and then of one behind it that is not.
        let different = self.tags ^ (ONES * tag);
        let mut maybe = different.wrapping_sub(ONES) & !different & TAG_BITS;
        while maybe != 0 {
            let at = maybe.trailing_zeros() as usize / 8;
            if self.entries[at].name == name {
                return Some(at);
            }
            maybe &= maybe - 1;
        }
        None
    }

    /// Put an entry at the first free place; false where there is none.
    #[inline(always)]
    fn put(&mut self, tag: u64, entry: Entry) -> bool {
        let free = !self.tags & TAG_BITS;
        if free == 0 {
            return false;
        }
        let at = free.trailing_zeros() as usize / 8;
        self.tags |= tag << (8 * at);
        self.entries[at] = entry;
        true
    }

    fn take(&mut self, at: usize) -> Entry {
        self.tags &= !(0xff << (8 * at));
        self.entries[at]
    }

    fn passed(&self) -> u64 {
        self.tags >> PASSED_SHIFT
    }

    fn held(&self) -> impl Iterator<Item = &Entry> {
        let mut left = self.tags & TAG_BITS;
        std::iter::from_fn(move || {
            let at = (left != 0).then(|| left.trailing_zeros() as usize / 8)?;
            left &= left - 1;
            Some(&self.entries[at])
        })
    }
}

/// Where a name stands that is to be added: an answer of `find`, good until the next change.
#[derive(Clone, Copy)]
pub struct Spot(u64);

/// See the module.
pub struct Entries {
    names: Names,
    groups: Paged<Group>,
    used: usize,
}

impl Entries {
    pub fn new(names: Names) -> Self {
        Entries { names, groups: Paged::zeroed(0), used: 0 }
    }

    #[inline(always)]
    fn home(&self, mixed: u64) -> usize {
        (((mixed >> 32) * self.groups.len() as u64) >> 32) as usize
    }

    fn tag(mixed: u64) -> u64 {
        (mixed >> 24) & 0x7f | 0x80
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.groups.len() { 0 } else { at + 1 }
    }

    /// Have the memory of a name fetched, for a look-up soon after.
    #[inline]
    pub fn prefetch(&self, name: u64) {
        if self.groups.len() > 0 {
            let group = &raw const self.groups[self.home(self.names.spread(name))];
            memory::prefetch(group);
            memory::prefetch(group.cast::<u8>().wrapping_add(size_of::<Group>() / 2));
        }
    }

    /// The key of a name, or the spot for it.
    #[inline]
    pub fn find(&self, name: u64) -> Result<u64, Spot> {
        let mixed = self.names.spread(name);
        match self.search(mixed, name) {
            Some((group, at)) => Ok(self.groups[group].entries[at].key),
            None => Err(Spot(mixed)),
        }
    }

    pub fn get(&self, name: u64) -> Option<u64> {
        self.find(name).ok()
    }

    /// The group of a name, and its place there.
    #[inline(always)]
    fn search(&self, mixed: u64, name: u64) -> Option<(usize, usize)> {
        let mut number = self.home(mixed);
        for _ in 0..self.groups.len() {
            let group = &self.groups[number];
            if let Some(at) = group.find(Self::tag(mixed), name) {
                return Some((number, at));
            }
            if group.passed() == 0 {
                return None;
            }
            number = self.next(number);
        }
        None
    }

    /// Add a name that is not there, at the spot that `find` gave for it.
    #[inline]
    pub fn insert(&mut self, spot: Spot, name: u64, key: u64) {
        if (self.used + 1) * 8 > self.groups.len() * ENTRIES * 7 {
            self.rebuild((self.used + 1) * 3 / 2);
        }
        self.add(spot.0, Entry { name, key });
        self.used += 1;
    }

    /// There must be a free place.
    #[inline(always)]
    fn add(&mut self, mixed: u64, entry: Entry) {
        let mut number = self.home(mixed);
        loop {
            let group = &mut self.groups[number];
            if group.put(Self::tag(mixed), entry) {
                return;
            }
            group.tags += u64::from(group.passed() != MANY) << PASSED_SHIFT;
            number = self.next(number);
        }
    }

    #[inline]
    pub fn remove(&mut self, name: u64) -> Option<u64> {
        let mixed = self.names.spread(name);
        let (found, at) = self.search(mixed, name)?;
        let mut number = self.home(mixed);
        while number != found {
            let group = &mut self.groups[number];
            group.tags -= u64::from(group.passed() != MANY) << PASSED_SHIFT;
            number = self.next(number);
        }
        let key = self.groups[found].take(at).key;
        self.used -= 1;
        if self.used * 6 < self.groups.len() * ENTRIES && self.groups.len() > 8 {
            self.rebuild(self.used * 3 / 2);
        }
        Some(key)
    }

    /// Write the table anew, with places for so many entries at least.
    fn rebuild(&mut self, places: usize) {
        let groups = places / ENTRIES + 1;
        let groups =
            if groups > PAGE_GROUPS { groups.next_multiple_of(PAGE_GROUPS) } else { groups };
        let old = std::mem::replace(&mut self.groups, Paged::zeroed(groups));
        for (name, key) in pairs(&old) {
            self.add(self.names.spread(name), Entry { name, key });
        }
    }

    /// Every entry's name and key, in no order.
    pub fn pairs(&self) -> impl Iterator<Item = (u64, u64)> {
        pairs(&self.groups)
    }

    /// Every entry's key.
    pub fn keys(&self) -> impl Iterator<Item = u64> {
        self.pairs().map(|(_, key)| key)
    }
}

fn pairs(groups: &Paged<Group>) -> impl Iterator<Item = (u64, u64)> {
    groups.iter().flat_map(Group::held).map(|entry| (entry.name, entry.key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::collections::hash_map::Entry::Vacant;

    /// Put in and take out at random, up to `wide` names of this shape.
    fn drive(names: Names, steps: u64, name_of: impl Fn(u64) -> u64) {
        let mut entries = Entries::new(names);
        let mut naive = HashMap::new();
        let mut state = 3u64;
        for step in 0..steps {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let wide = if step % 40_000 < 20_000 { 5000 } else { 100 };
            let name = name_of((state >> 33) % wide);
            if (state >> 60) < 9 {
                if let Vacant(free) = naive.entry(name) {
                    free.insert(step);
                    let spot = entries.find(name).expect_err("it is not there");
                    entries.insert(spot, name, step);
                }
            } else {
                assert_eq!(entries.remove(name), naive.remove(&name));
            }
            entries.prefetch(name);
            assert_eq!(entries.get(name), naive.get(&name).copied());
            assert_eq!(entries.used, naive.len());
        }
        assert!(naive.iter().all(|(&name, &key)| entries.get(name) == Some(key)));
        assert_eq!(entries.pairs().collect::<HashMap<_, _>>(), naive);
        for name in naive.keys() {
            assert!(entries.remove(*name).is_some());
        }
        assert_eq!(entries.keys().count(), 0);
    }

    #[test]
    fn entries_are_a_map() {
        drive(Names::new(), 200_000, |number| number);
    }

    #[test]
    fn names_that_crowd_into_few_groups_are_found_all_the_same() {
        let names = Names::new();
        // What makes a name's mixed bits small: its home is among the first groups.
        drive(names, 20_000, |number| names.of_spread(number % 700));
    }
}
