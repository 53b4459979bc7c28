//! Memory for tables: zeroed arrays of cache lines, and the processor's prefetch.
//!
//! Contract: an array belongs to whoever made it, until it gives it back with the same length.
//!
//! Shape: arrays from a page on are whole pages (`pages`), in a row or, where `Paged`, one by one;
//! smaller ones come from `malloc`.

use crate::pages::{self, PAGE_BYTES};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// A cache line's alignment at least: users keep numbers in the bits that it leaves free.
fn layout<T>(count: usize) -> Layout {
    Layout::array::<T>(count)
        .and_then(|layout| layout.align_to(64))
        .expect("a table is far smaller than memory")
}

/// So many zeroed `T`s; at least one. `T` must be valid as zeros.
pub fn zeroed<T>(count: usize) -> NonNull<T> {
    const { assert!(align_of::<T>() <= PAGE_BYTES) };
    let layout = layout::<T>(count);
    assert!(layout.size() > 0);
    if layout.size() >= PAGE_BYTES {
        return pages::take(layout.size().div_ceil(PAGE_BYTES)).cast();
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
        if layout.size() >= PAGE_BYTES {
            pages::give(start.cast(), layout.size().div_ceil(PAGE_BYTES));
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
/// What it is replaced by, when it grows, finds room where others were; an empty one takes none.
pub struct Paged<T> {
    /// Arrays of their own, of a page each; less where it is the only one.
    pages: Vec<NonNull<T>>,
    count: usize,
}

// SAFETY: it owns its elements, as a Box would.
unsafe impl<T: Send> Send for Paged<T> {}
unsafe impl<T: Sync> Sync for Paged<T> {}

impl<T> Paged<T> {
    pub const PER_PAGE: usize = {
        assert!(!std::mem::needs_drop::<T>() && PAGE_BYTES.is_multiple_of(size_of::<T>()));
        PAGE_BYTES / size_of::<T>()
    };

    /// `T` must be plain data that is valid as zeros.
    pub fn zeroed(count: usize) -> Self
    where
        T: Copy,
    {
        let page_count = count.div_ceil(Self::PER_PAGE);
        let pages = (0..page_count).map(|_| zeroed(count.min(Self::PER_PAGE))).collect();
        Paged { pages, count }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.count).map(|at| &self[at])
    }

    #[inline(always)]
    fn pointer(&self, at: usize) -> NonNull<T> {
        assert!(at < self.count);
        // SAFETY: so many elements have pages, and a page has so many.
        unsafe { self.pages.get_unchecked(at / Self::PER_PAGE).add(at % Self::PER_PAGE) }
    }
}

impl<T> std::ops::Index<usize> for Paged<T> {
    type Output = T;

    #[inline(always)]
    fn index(&self, at: usize) -> &T {
        // SAFETY: it is there, zeroed at least, and changed only through `&mut self`.
        unsafe { self.pointer(at).as_ref() }
    }
}

impl<T> std::ops::IndexMut<usize> for Paged<T> {
    #[inline(always)]
    fn index_mut(&mut self, at: usize) -> &mut T {
        // SAFETY: as above, and nobody else has it.
        unsafe { self.pointer(at).as_mut() }
    }
}

impl<T> Drop for Paged<T> {
    fn drop(&mut self) {
        for &page in &self.pages {
            // SAFETY: it came from `zeroed` with as many elements, and ends here.
            unsafe { free(page, self.count.min(Self::PER_PAGE)) };
        }
    }
}
