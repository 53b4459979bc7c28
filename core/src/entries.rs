//! A source's own table: engine hash (by its name) → block key.
//!
//! Contract: a map, for one thread at a time. Its memory can be asked for ahead of a look-up,
//! which is why it is not `hashbrown`: every message finds another source's table cold, and two
//! misses in a row per block were a third of an `apply`.
//!
//! Shape: ordered linear probing over 16-byte entries. A name is kept as 64 mixed bits (a
//! bijection), its home is proportional to them, and entries stand in their order, so the whole
//! table is sorted, with gaps. A search for what is not there, which every new block begins with,
//! ends as early as one for what is; growing is one pass over both tables from start to end; an
//! entry that goes lets those behind it move up, so there are no marks to sweep. Spread
//! anew, at two thirds, when 85 % are used: 16 bytes for each entry, divided by 0.67 to 0.85.

use crate::memory::{self, Lines};
use crate::names::Names;

/// No entry. Names are kept in falling order, so that it ends every search.
const FREE: u64 = 0;

#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct Entry {
    kept: u64,
    key: u64,
}

/// Where a name stands, or would: an answer of `find`, good until the next change.
#[derive(Clone, Copy)]
pub struct Spot(usize);

/// See the module.
pub struct Entries {
    names: Names,
    /// `homes` of them, and a few behind for those that were pushed on. The last is always free.
    all: Lines<Entry>,
    homes: usize,
    used: usize,
}

impl Entries {
    pub fn new(names: Names) -> Self {
        Entries { names, all: Lines::empty(), homes: 0, used: 0 }
    }

    /// Where a search begins; the larger what is kept, the earlier.
    fn home(&self, kept: u64) -> usize {
        (((!kept >> 32) * self.homes as u64) >> 32) as usize
    }

    /// Have the memory of a name fetched, for a look-up soon after.
    pub fn prefetch(&self, name: u64) {
        if self.homes > 0 {
            memory::prefetch(&raw const self.all[self.home(self.names.keep(name))]);
        }
    }

    /// The key of a name, or the spot for it.
    pub fn find(&self, name: u64) -> Result<u64, Spot> {
        let kept = self.names.keep(name);
        match self.search(kept) {
            Some(at) if self.all[at].kept == kept => Ok(self.all[at].key),
            at => Err(Spot(at.unwrap_or(0))),
        }
    }

    pub fn get(&self, name: u64) -> Option<u64> {
        self.find(name).ok()
    }

    /// The first place from a name's home on that is free or holds it or one behind it.
    fn search(&self, kept: u64) -> Option<usize> {
        if self.homes == 0 {
            return None;
        }
        let home = self.home(kept);
        self.all[home..].iter().position(|entry| entry.kept <= kept).map(|past| home + past)
    }

    /// Add a name that is not there, at the spot that `find` gave for it.
    pub fn insert(&mut self, spot: Spot, name: u64, key: u64) {
        let entry = Entry { kept: self.names.keep(name), key };
        let mut at = spot.0;
        if (self.used + 1) * 20 > self.homes * 17 {
            self.grow((self.used + 1) * 3 / 2 + 8);
            at = self.search(entry.kept).unwrap_or(0);
        }
        while !self.put(at, entry) {
            self.grow(self.homes + self.homes / 8 + 8);
            at = self.search(entry.kept).unwrap_or(0);
        }
        self.used += 1;
    }

    /// Put an entry at a place and push on those that stand there; false at the table's end.
    fn put(&mut self, at: usize, entry: Entry) -> bool {
        let free = self.all[at..].iter().position(|there| there.kept == FREE);
        let Some(free) = free.map(|past| at + past).filter(|free| free + 1 < self.all.len()) else {
            return false;
        };
        self.all.copy_within(at..free, at + 1);
        self.all[at] = entry;
        true
    }

    pub fn remove(&mut self, name: u64) -> Option<u64> {
        let kept = self.names.keep(name);
        let at = self.search(kept).filter(|&at| self.all[at].kept == kept)?;
        let key = self.all[at].key;
        // Those that were pushed on move up, as far as the next that stands at its home.
        let mut end = at + 1;
        while self.all[end].kept != FREE && self.home(self.all[end].kept) < end {
            end += 1;
        }
        self.all.copy_within(at + 1..end, at);
        self.all[end - 1].kept = FREE;
        self.used -= 1;
        if self.used * 6 < self.homes && self.homes > 64 {
            self.shrink(self.used * 5 / 3 + 8);
        }
        Some(key)
    }

    /// Spread all entries over more homes, in place: a third of the memory of a copy, and of the
    /// time that the system takes to find it.
    fn grow(&mut self, homes: usize) {
        let mut homes = homes;
        loop {
            self.homes = homes;
            let before = self.all.len();
            self.all.grow(length(homes));
            let first = self.push_to_the_end(before);
            if self.fits(first) {
                return self.spread(first);
            }
            homes += homes / 4 + 8;
        }
    }

    /// Move all entries together at the end; returns where they begin. The order stays.
    fn push_to_the_end(&mut self, before: usize) -> usize {
        let mut first = self.all.len();
        for at in (0..before).rev() {
            let entry = self.all[at];
            if entry.kept != FREE {
                first -= 1;
                self.all[at].kept = FREE;
                self.all[first] = entry;
            }
        }
        first
    }

    /// Whether the last of the entries behind `first` would have a place.
    fn fits(&self, first: usize) -> bool {
        let after = |next: usize, entry: &Entry| next.max(self.home(entry.kept)) + 1;
        self.all[first..].iter().fold(0, after) < self.all.len()
    }

    /// Put the entries behind `first` where they belong. None is overwritten before its turn:
    /// each belongs before where it stands, because those behind it must find room too.
    fn spread(&mut self, first: usize) {
        let mut next = 0;
        for at in first..self.all.len() {
            let entry = self.all[at];
            self.all[at].kept = FREE;
            next = next.max(self.home(entry.kept));
            self.all[next] = entry;
            next += 1;
        }
    }

    fn shrink(&mut self, homes: usize) {
        let old = std::mem::replace(&mut self.all, Lines::zeroed(length(homes)));
        let held: Vec<Entry> = old.iter().filter(|entry| entry.kept != FREE).copied().collect();
        let first = self.all.len() - held.len();
        self.all[first..].copy_from_slice(&held);
        self.homes = homes;
        if self.fits(first) {
            self.spread(first);
        } else {
            self.all = Lines::zeroed(length(homes));
            self.all[..held.len()].copy_from_slice(&held);
            self.grow(homes + homes / 4 + 8);
        }
    }

    /// Every entry's key.
    pub fn keys(&self) -> impl Iterator<Item = u64> {
        self.pairs().map(|(_, key)| key)
    }

    /// Every entry's name and key, in no order.
    pub fn pairs(&self) -> impl Iterator<Item = (u64, u64)> {
        let used = self.all.iter().filter(|entry| entry.kept != FREE);
        used.map(|entry| (self.names.name_of(entry.kept), entry.key))
    }
}

/// Places for so many homes: some more, for entries that are pushed on past the last home.
fn length(homes: usize) -> usize {
    homes + homes / 32 + 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::collections::hash_map::Entry::Vacant;

    #[test]
    fn entries_are_a_map() {
        let mut entries = Entries::new(Names::new());
        let mut naive = HashMap::new();
        let mut state = 3u64;
        for step in 0..200_000u64 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let wide = if step % 40_000 < 20_000 { 5000 } else { 100 };
            let name = (state >> 33) % wide;
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
        assert_eq!(entries.pairs().collect::<HashMap<u64, u64>>(), naive);
        assert_eq!(entries.keys().count(), naive.len());
    }
}
