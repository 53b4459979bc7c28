//! Memory for tables: zeroed arrays of cache lines, and the processor's prefetch.
//!
//! Contract: an array belongs to whoever made it, until it gives it back with the same length.
//!
//! Shape: an array that is exactly a page comes from `pages`, and longer ones are made of such;
//! smaller ones come from `malloc`.

use crate::pages::{self, LARGE_PAGE_BYTES, PAGE_BYTES};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// A cache line's alignment at least: users keep numbers in the bits that it leaves free.
fn layout<T>(count: usize) -> Layout {
    Layout::array::<T>(count)
        .and_then(|layout| layout.align_to(64))
        .expect("a table is far smaller than memory")
}

fn is_page(layout: Layout) -> bool {
    matches!(layout.size(), PAGE_BYTES | LARGE_PAGE_BYTES)
}

/// So many zeroed `T`s; at least one. `T` must be valid as zeros.
pub fn zeroed<T>(count: usize) -> NonNull<T> {
    const { assert!(align_of::<T>() <= PAGE_BYTES) };
    let layout = layout::<T>(count);
    assert!(layout.size() > 0);
    if is_page(layout) {
        return pages::take(layout.size()).cast();
    }
    // SAFETY: the size is not 0.
    let start = unsafe { alloc_zeroed(layout) }.cast();
    NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout))
}

/// Give an array back.
///
/// # Safety
/// `start` came from `zeroed` with the same type and count, and nobody uses it any more.
pub unsafe fn free<T>(start: NonNull<T>, count: usize) {
    let layout = layout::<T>(count);
    // SAFETY: by the contract `zeroed` made it, in the same way.
    unsafe {
        if is_page(layout) {
            pages::give(start.cast(), layout.size());
        } else {
            dealloc(start.as_ptr().cast(), layout);
        }
    }
}

/// Have a cache line fetched. Harmless for any address; nothing where it cannot be said.
#[inline(always)]
pub fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on the cache, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// An owned array of plain data whose pages lie anywhere, which costs a load more for each access.
/// Growing moves nothing; what is replaced by a longer one leaves pages that any other can use. An
/// empty one takes none.
pub struct Paged<T> {
    /// Arrays of their own, of a page each; less where it is the only one.
    pages: Vec<NonNull<T>>,
    count: usize,
    /// Elements that there is room for in the pages.
    room: usize,
}

// SAFETY: it owns its elements, as a Box would.
unsafe impl<T: Send> Send for Paged<T> {}
unsafe impl<T: Sync> Sync for Paged<T> {}

/// `T` must be plain data that is valid as zeros.
impl<T: Copy> Paged<T> {
    pub const PER_PAGE: usize = {
        assert!(PAGE_BYTES.is_multiple_of(size_of::<T>()));
        PAGE_BYTES / size_of::<T>()
    };

    pub fn zeroed(count: usize) -> Self {
        let size = count.min(Self::PER_PAGE);
        let pages: Vec<_> = (0..count.div_ceil(Self::PER_PAGE)).map(|_| zeroed(size)).collect();
        let room = pages.len() * size;
        Paged { pages, count, room }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn push(&mut self, value: T) {
        if self.count == self.room {
            if self.room > 0 && self.room < Self::PER_PAGE {
                // The only page becomes a longer one.
                let mut longer = Paged::zeroed((2 * self.room).min(Self::PER_PAGE));
                (0..self.count).for_each(|at| longer[at] = self[at]);
                longer.count = self.count;
                *self = longer;
            } else {
                let size = if self.room == 0 { 4.min(Self::PER_PAGE) } else { Self::PER_PAGE };
                self.pages.push(zeroed(size));
                self.room += size;
            }
        }
        self.count += 1;
        let last = self.count - 1;
        self[last] = value;
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.count).map(|at| &self[at])
    }

    #[inline(always)]
    fn pointer(&self, at: usize) -> NonNull<T> {
        assert!(at < self.count);
        // SAFETY: there is room for so many elements in the pages, and in each but a single one
        // for so many.
        unsafe { self.pages.get_unchecked(at / Self::PER_PAGE).add(at % Self::PER_PAGE) }
    }
}

impl<T: Copy> std::ops::Index<usize> for Paged<T> {
    type Output = T;

    #[inline(always)]
    fn index(&self, at: usize) -> &T {
        // SAFETY: it is there, zeroed at least, and changed only through `&mut self`.
        unsafe { self.pointer(at).as_ref() }
    }
}

impl<T: Copy> std::ops::IndexMut<usize> for Paged<T> {
    #[inline(always)]
    fn index_mut(&mut self, at: usize) -> &mut T {
        // SAFETY: as above, and nobody else has it.
        unsafe { self.pointer(at).as_mut() }
    }
}

impl<T> Drop for Paged<T> {
    fn drop(&mut self) {
        let size = self.room / self.pages.len().max(1);
        for &page in &self.pages {
            // SAFETY: it came from `zeroed` with as many elements, and ends here.
            unsafe { free(page, size) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paged_array_is_an_array() {
        for start in [0, 1, 3, 63, 64, 65, 200] {
            let mut paged = Paged::<[u64; 8]>::zeroed(start);
            assert!(paged.iter().all(|element| *element == [0; 8]));
            let mut naive = vec![[0; 8]; start];
            for number in 0..300 {
                paged.push([number; 8]);
                naive.push([number; 8]);
                let at = (number as usize * 7919) % naive.len();
                paged[at][1] += number;
                naive[at][1] += number;
            }
            assert_eq!(paged.iter().copied().collect::<Vec<_>>(), naive);
        }
    }
}
