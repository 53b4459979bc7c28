//! Memory for tables: zeroed arrays of cache lines, and the processor's prefetch.
//!
//! Contract: an array belongs to whoever made it, until it gives it back with the same length.
//!
//! Shape: arrays from 32 KiB on are pages of their own, straight from the system. Tables grow by a
//! third, over and over, many of them at the same time: from `malloc` the arrays that they grow
//! out of were holes that no later array fitted into, and 1.4 million placements took 76 bytes
//! each instead of 34.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

#[cfg(unix)]
const PAGES_FROM_BYTES: usize = 32 * 1024;

/// All pages at once: a table that is written anew touches them all, in no order.
#[cfg(target_os = "linux")]
const POPULATE: libc::c_int = libc::MAP_POPULATE;
#[cfg(all(unix, not(target_os = "linux")))]
const POPULATE: libc::c_int = 0;

/// A cache line's alignment at least: users keep numbers in the bits that it leaves free.
fn layout<T>(count: usize) -> Layout {
    Layout::array::<T>(count)
        .and_then(|layout| layout.align_to(64))
        .expect("a table is far smaller than memory")
}

/// So many zeroed `T`s; at least one. `T` must be valid as zeros.
pub fn zeroed<T>(count: usize) -> NonNull<T> {
    let layout = layout::<T>(count);
    assert!(layout.size() > 0);
    #[cfg(unix)]
    if layout.size() >= PAGES_FROM_BYTES {
        // SAFETY: a new private mapping; its size is not 0. Pages are aligned for any line.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                layout.size(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | POPULATE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            handle_alloc_error(layout);
        }
        return NonNull::new(start.cast()).unwrap_or_else(|| handle_alloc_error(layout));
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
    #[cfg(unix)]
    if layout.size() >= PAGES_FROM_BYTES {
        // SAFETY: by the contract this is one whole mapping.
        unsafe { libc::munmap(start.as_ptr().cast(), layout.size()) };
        return;
    }
    // SAFETY: by the contract this was allocated with this layout.
    unsafe { dealloc(start.as_ptr().cast(), layout) };
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

/// An owned array of zeroed lines; empty ones take no memory.
pub struct Lines<T> {
    start: NonNull<T>,
    count: usize,
}

// SAFETY: it owns its lines, as a Box would.
unsafe impl<T: Send> Send for Lines<T> {}
unsafe impl<T: Sync> Sync for Lines<T> {}

impl<T> Lines<T> {
    pub fn empty() -> Self {
        Lines { start: NonNull::dangling(), count: 0 }
    }

    /// `T` must be plain data that is valid as zeros.
    pub fn zeroed(count: usize) -> Self
    where
        T: Copy,
    {
        Lines { start: zeroed(count), count }
    }

    /// More of them, the new ones zeroed. Pages of their own are not copied but mapped anew.
    pub fn grow(&mut self, count: usize)
    where
        T: Copy,
    {
        assert!(count >= self.count);
        #[cfg(target_os = "linux")]
        if self.count > 0 && layout::<T>(self.count).size() >= PAGES_FROM_BYTES {
            let (old, new) = (layout::<T>(self.count), layout::<T>(count));
            // SAFETY: it is one whole mapping of the old size, which nobody else uses; pages that
            // are added are zeroed, and the rest of the last one never was anything else.
            let start = unsafe {
                let start = self.start.as_ptr().cast();
                libc::mremap(start, old.size(), new.size(), libc::MREMAP_MAYMOVE)
            };
            if start == libc::MAP_FAILED {
                handle_alloc_error(new);
            }
            self.start = NonNull::new(start.cast()).unwrap_or_else(|| handle_alloc_error(new));
            self.count = count;
            return;
        }
        let mut more = Lines::zeroed(count);
        more[..self.count].copy_from_slice(self);
        *self = more;
    }
}

impl<T> std::ops::Deref for Lines<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: so many are there, zeroed at least.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T> std::ops::DerefMut for Lines<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.count) }
    }
}

impl<T> Drop for Lines<T> {
    fn drop(&mut self) {
        if self.count > 0 {
            // SAFETY: they came from `zeroed`, and end here.
            unsafe { free(self.start, self.count) };
        }
    }
}
