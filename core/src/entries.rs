//! A source's own table: engine hash (by its name) → block key.
//!
//! Contract: a map, for one thread at a time. Its memory can be asked for ahead of a look-up,
//! which is why it is not `hashbrown`: every message finds another source's table cold.
//!
//! Shape: entries stand in the order in which they came, in a log; where one goes, the next one
//! comes in. An index finds them: groups of one cache line, with a byte of each of twelve names,
//! their places in the log, and how many entries had to go on to a later group because this one
//! was full when they came. So a new block, which most are, touches one cold line: the search for
//! its name nearly always ends in one group without a look at the log, whose end is at hand. The
//! index is written anew, five eighths full, when five sixths of it are used: 16 bytes for each
//! entry, and 6.4 to 8.5 for its place in the index.

use crate::memory::{self, Paged};
use crate::names::Names;

const SLOTS: usize = 12;
const PAGE_GROUPS: usize = Paged::<Group>::PER_PAGE;
/// Where in the second word of tags the number of entries that passed by stands.
const PASSED_SHIFT: u32 = 32;
/// A number of passers-by that is not counted any further, nor back.
const MANY: u64 = 0xff;
const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;
/// The bytes of the second word that are tags.
const SECOND: u64 = 0xffff_ffff;
const NOWHERE: u32 = u32::MAX;

/// A free place of the log has, as its key, the place that became free before it.
#[derive(Clone, Copy)]
struct Entry {
    name: u64,
    key: u64,
}

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Group {
    /// A byte for each slot, 0 where free: those of eight, those of four and `passed`. Read and
    /// written as whole words: the processor waits where a part of what is read was just written.
    tags: [u64; 2],
    places: [u32; SLOTS],
}

/// The high bit of each byte that is 0; now and then of one behind it that is 1.
#[inline(always)]
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & HIGHS
}

fn first(bits: u64) -> usize {
    bits.trailing_zeros() as usize / 8
}

impl Group {
    /// Slots whose tag is this one, and seldom others, a bit each. No tag is 1: none is free.
    #[inline(always)]
    fn like(&self, tag: u64) -> [u64; 2] {
        let tags = ONES * tag;
        [zeros(self.tags[0] ^ tags), zeros(self.tags[1] ^ tags) & (SECOND & HIGHS)]
    }

    /// The slot of a name.
    #[inline(always)]
    fn find(&self, tag: u64, name: u64, log: &Paged<Entry>) -> Option<usize> {
        let like = self.like(tag);
        if like[0] | like[1] == 0 {
            return None;
        }
        for (word, mut like) in like.into_iter().enumerate() {
            while like != 0 {
                let slot = 8 * word + first(like);
                if log[self.places[slot] as usize].name == name {
                    return Some(slot);
                }
                like &= like - 1;
            }
        }
        None
    }

    /// Put an entry's place into the first free slot; false where there is none.
    #[inline(always)]
    fn put(&mut self, tag: u64, place: u32) -> bool {
        let free = [zeros(self.tags[0]), zeros(self.tags[1]) & (SECOND & HIGHS)];
        let word = usize::from(free[0] == 0);
        if free[word] == 0 {
            return false;
        }
        let slot = first(free[word]);
        self.tags[word] |= tag << (8 * slot);
        self.places[8 * word + slot] = place;
        true
    }

    fn take(&mut self, slot: usize) {
        self.tags[slot / 8] &= !(0xff << (8 * (slot % 8)));
    }

    fn passed(&self) -> u64 {
        self.tags[1] >> PASSED_SHIFT
    }
}

/// Where a name stands that is to be added: an answer of `find`, good until the next change.
#[derive(Clone, Copy)]
pub struct Spot(u64);

/// See the module.
pub struct Entries {
    names: Names,
    groups: Paged<Group>,
    log: Paged<Entry>,
    /// The place in the log that became free last.
    free: u32,
    used: usize,
}

impl Entries {
    pub fn new(names: Names) -> Self {
        let (groups, log) = (Paged::zeroed(0), Paged::zeroed(0));
        Entries { names, groups, log, free: NOWHERE, used: 0 }
    }

    #[inline(always)]
    fn home(&self, mixed: u64) -> usize {
        (((mixed >> 32) * self.groups.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn tag(mixed: u64) -> u64 {
        ((mixed >> 24) & 0xff).max(2)
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.groups.len() { 0 } else { at + 1 }
    }

    /// Have memory fetched for a look-up soon after.
    #[inline]
    pub fn prefetch(&self, name: u64) {
        if self.groups.len() > 0 {
            memory::prefetch(&raw const self.groups[self.home(self.names.spread(name))]);
        }
    }

    /// … and more of it, for a name that is probably there, when that memory is at hand.
    #[inline]
    pub fn prefetch_entry(&self, name: u64) {
        if self.groups.len() > 0 {
            let mixed = self.names.spread(name);
            let group = &self.groups[self.home(mixed)];
            let like = group.like(Self::tag(mixed));
            let word = usize::from(like[0] == 0);
            if like[word] != 0 {
                let place = group.places[8 * word + first(like[word])];
                memory::prefetch(&raw const self.log[place as usize]);
            }
        }
    }

    /// The key of a name, or the spot for it.
    #[inline]
    pub fn find(&self, name: u64) -> Result<u64, Spot> {
        let mixed = self.names.spread(name);
        match self.search(mixed, name) {
            Some((group, slot)) => Ok(self.log[self.groups[group].places[slot] as usize].key),
            None => Err(Spot(mixed)),
        }
    }

    pub fn get(&self, name: u64) -> Option<u64> {
        self.find(name).ok()
    }

    /// The group of a name, and its slot there.
    #[inline(always)]
    fn search(&self, mixed: u64, name: u64) -> Option<(usize, usize)> {
        let mut number = self.home(mixed);
        for _ in 0..self.groups.len() {
            let group = &self.groups[number];
            if let Some(slot) = group.find(Self::tag(mixed), name, &self.log) {
                return Some((number, slot));
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
        if (self.used + 1) * 6 > self.groups.len() * SLOTS * 5 {
            self.rebuild(self.used + 1);
        }
        let entry = Entry { name, key };
        let place = self.free;
        if place == NOWHERE {
            let place = u32::try_from(self.log.len()).ok().filter(|&place| place != NOWHERE);
            self.add(spot.0, place.expect("memory ends before"));
            self.log.push(entry);
        } else {
            self.free = self.log[place as usize].key as u32;
            self.log[place as usize] = entry;
            self.add(spot.0, place);
        }
        self.used += 1;
    }

    /// There must be a free slot.
    #[inline(always)]
    fn add(&mut self, mixed: u64, place: u32) {
        let mut number = self.home(mixed);
        loop {
            let group = &mut self.groups[number];
            if group.put(Self::tag(mixed), place) {
                return;
            }
            group.tags[1] += u64::from(group.passed() != MANY) << PASSED_SHIFT;
            number = self.next(number);
        }
    }

    #[inline]
    pub fn remove(&mut self, name: u64) -> Option<u64> {
        let mixed = self.names.spread(name);
        let (found, slot) = self.search(mixed, name)?;
        let mut number = self.home(mixed);
        while number != found {
            let group = &mut self.groups[number];
            group.tags[1] -= u64::from(group.passed() != MANY) << PASSED_SHIFT;
            number = self.next(number);
        }
        let place = self.groups[found].places[slot];
        self.groups[found].take(slot);
        let key = std::mem::replace(&mut self.log[place as usize].key, u64::from(self.free));
        self.free = place;
        self.used -= 1;
        if self.used * 4 < self.log.len() && self.log.len() > 64 {
            self.compact();
        }
        Some(key)
    }

    /// Write the index anew, with slots for so many and three fifths more.
    fn rebuild(&mut self, entries: usize) {
        let groups = entries * 8 / (5 * SLOTS) + 1;
        let groups =
            if groups > PAGE_GROUPS { groups.next_multiple_of(PAGE_GROUPS) } else { groups };
        self.groups = Paged::zeroed(groups);
        let free = self.free_places();
        for place in 0..self.log.len() {
            if free.is_empty() || !free[place] {
                self.add(self.names.spread(self.log[place].name), place as u32);
            }
        }
    }

    /// Write both anew, without free places in the log.
    fn compact(&mut self) {
        let mut log = Paged::zeroed(0);
        self.pairs().for_each(|(name, key)| log.push(Entry { name, key }));
        (self.log, self.free) = (log, NOWHERE);
        self.rebuild(self.used);
    }

    /// Of each place in the log whether it is free; nothing where none is.
    fn free_places(&self) -> Vec<bool> {
        if self.used == self.log.len() {
            return Vec::new();
        }
        let mut all = vec![false; self.log.len()];
        let mut free = self.free;
        while free != NOWHERE {
            all[free as usize] = true;
            free = self.log[free as usize].key as u32;
        }
        all
    }

    /// Every entry's name and key, in no order.
    pub fn pairs(&self) -> impl Iterator<Item = (u64, u64)> {
        let free = self.free_places();
        let held = self.log.iter().enumerate();
        held.filter(move |(place, _)| free.is_empty() || !free[*place])
            .map(|(_, entry)| (entry.name, entry.key))
    }

    /// Every entry's key.
    pub fn keys(&self) -> impl Iterator<Item = u64> {
        self.pairs().map(|(_, key)| key)
    }
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
