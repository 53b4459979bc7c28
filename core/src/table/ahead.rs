//! Look-ups in a table begun before their turn, so that their memory is there when it comes.
//!
//! Contract: as `Table::get` for each key, at a moment between the beginning of its look-up and its
//! end. Knows no prompt: which keys come next is its caller's to say.

use super::{Spot, Table};
use crate::sets::Set;
use crossbeam_epoch::Guard;
use std::sync::atomic::Ordering;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Names;

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
