//! Pages for tables: zeroed, of two sizes, cut from chunks of 2 MiB that the system may back with
//! one huge page.
//!
//! Contract: a page belongs to whoever took it, until it is given back. Memory goes back to the
//! system when a chunk is wholly free (one is kept), and page by page where three quarters of a
//! chunk are free. Where the system grants no huge pages, or has no such thing, all works alike.
//!
//! Why pages: tables grow by a quarter, over and over, many of them at the same time. All of them
//! being made of equal pieces, what one grows out of always fits another. Why chunks: with 4 KiB
//! per translation a look-up of a cold block waited for the processor's page tables longer than
//! for the block (core/README.md has the figures).

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;

/// What a directory of a table that nobody shares is made of: little is left over.
pub const PAGE_BYTES: usize = 4096;
/// … and of one that all share: its directories stay in the nearest cache.
pub const LARGE_PAGE_BYTES: usize = 4 * PAGE_BYTES;
const CHUNK_BYTES: usize = 2 << 20;
const MOST_PAGES: usize = CHUNK_BYTES / PAGE_BYTES;

struct Chunk {
    /// A bit for each page.
    free: [u64; MOST_PAGES / 64],
    free_pages: usize,
    /// Pages from here on were never handed out: the system's zeros are still in them.
    fresh_from: usize,
    /// Its free pages are the system's.
    is_sparse: bool,
}

/// Chunks by their address, and those of them that have a free page.
struct Pool {
    page_bytes: usize,
    chunks: BTreeMap<usize, Chunk>,
    open: BTreeSet<usize>,
}

static PAGES: Mutex<Pool> = Mutex::new(Pool::of(PAGE_BYTES));
static LARGE_PAGES: Mutex<Pool> = Mutex::new(Pool::of(LARGE_PAGE_BYTES));

fn pool(bytes: usize) -> &'static Mutex<Pool> {
    match bytes {
        PAGE_BYTES => &PAGES,
        LARGE_PAGE_BYTES => &LARGE_PAGES,
        _ => unreachable!("pages have two sizes"),
    }
}

/// A zeroed page of one of the two sizes, at an address that is a multiple of it.
pub fn take(bytes: usize) -> NonNull<u8> {
    let (page, is_fresh) = pool(bytes).lock().take();
    if !is_fresh {
        // SAFETY: the page was free, so that nobody else knows it.
        unsafe { page.as_ptr().write_bytes(0, bytes) };
    }
    page
}

/// Give a page back.
///
/// # Safety
/// `take` gave it, of as many bytes, and nobody uses it any more.
pub unsafe fn give(page: NonNull<u8>, bytes: usize) {
    pool(bytes).lock().give(page);
}

impl Pool {
    const fn of(page_bytes: usize) -> Self {
        Pool { page_bytes, chunks: BTreeMap::new(), open: BTreeSet::new() }
    }

    fn chunk_pages(&self) -> usize {
        CHUNK_BYTES / self.page_bytes
    }

    /// A page of the lowest chunk that has one, so that the highest run empty; whether it is new.
    fn take(&mut self) -> (NonNull<u8>, bool) {
        let start = self.open.first().copied().unwrap_or_else(|| self.add());
        let sparse_to = self.chunk_pages() / 2;
        let chunk = self.chunks.get_mut(&start).expect("an open chunk is a chunk");
        let page = chunk.first_free();
        chunk.free[page / 64] &= !(1 << (page % 64));
        chunk.free_pages -= 1;
        if chunk.free_pages == 0 {
            self.open.remove(&start);
        }
        if chunk.is_sparse && chunk.free_pages <= sparse_to {
            chunk.is_sparse = false;
            system::prefer_huge(start, true);
        }
        let is_fresh = page >= chunk.fresh_from;
        chunk.fresh_from = chunk.fresh_from.max(page + 1);
        (system::pointer(start + page * self.page_bytes), is_fresh)
    }

    fn add(&mut self) -> usize {
        let start = system::map();
        let mut free = [0; MOST_PAGES / 64];
        free[..self.chunk_pages() / 64].fill(u64::MAX);
        let free_pages = self.chunk_pages();
        self.chunks.insert(start, Chunk { free, free_pages, fresh_from: 0, is_sparse: false });
        self.open.insert(start);
        start
    }

    fn give(&mut self, page: NonNull<u8>) {
        let (page_bytes, chunk_pages) = (self.page_bytes, self.chunk_pages());
        let at = page.as_ptr().expose_provenance();
        let start = at & !(CHUNK_BYTES - 1);
        let number = (at - start) / page_bytes;
        let chunk = self.chunks.get_mut(&start).expect("a page of a chunk");
        chunk.free[number / 64] |= 1 << (number % 64);
        chunk.free_pages += 1;
        self.open.insert(start);
        if chunk.free_pages == chunk_pages {
            if self.chunks.values().filter(|chunk| chunk.free_pages == chunk_pages).count() > 1 {
                self.chunks.remove(&start);
                self.open.remove(&start);
                system::unmap(start);
            }
        } else if chunk.is_sparse {
            system::discard(at, page_bytes);
        } else if chunk.free_pages >= chunk_pages * 3 / 4 && chunk.fresh_from == chunk_pages {
            chunk.is_sparse = true;
            system::prefer_huge(start, false);
            for (first, pages) in chunk.free_runs() {
                system::discard(start + first * page_bytes, pages * page_bytes);
            }
        }
    }
}

impl Chunk {
    fn is_free(&self, page: usize) -> bool {
        self.free[page / 64] >> (page % 64) & 1 == 1
    }

    fn first_free(&self) -> usize {
        let word = self.free.iter().position(|&word| word != 0).expect("an open chunk has room");
        word * 64 + self.free[word].trailing_zeros() as usize
    }

    /// (the first page, how many) of neighbours that are free.
    fn free_runs(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut page = 0;
        std::iter::from_fn(move || {
            let first = (page..MOST_PAGES).find(|&page| self.is_free(page))?;
            page = (first..MOST_PAGES).find(|&page| !self.is_free(page)).unwrap_or(MOST_PAGES);
            Some((first, page - first))
        })
    }
}

/// Chunks from the system, by address.
#[cfg(unix)]
mod system {
    use super::CHUNK_BYTES;
    use std::alloc::{Layout, handle_alloc_error};
    use std::ptr::{NonNull, null_mut};

    pub fn pointer(address: usize) -> NonNull<u8> {
        NonNull::new(std::ptr::with_exposed_provenance_mut(address)).expect("no page is at 0")
    }

    fn map_bytes(bytes: usize) -> usize {
        // SAFETY: a new private mapping; its size is not 0.
        let start = unsafe {
            libc::mmap(
                null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            handle_alloc_error(Layout::new::<[u8; CHUNK_BYTES]>());
        }
        start.expose_provenance()
    }

    fn unmap_bytes(start: usize, bytes: usize) {
        if bytes > 0 {
            // SAFETY: it was mapped here, and is nobody's.
            unsafe { libc::munmap(pointer(start).as_ptr().cast(), bytes) };
        }
    }

    /// A chunk at a multiple of its size, zeroed.
    pub fn map() -> usize {
        // New kernels align it by themselves; else cut one out of twice as much.
        let mut start = map_bytes(CHUNK_BYTES);
        if !start.is_multiple_of(CHUNK_BYTES) {
            unmap_bytes(start, CHUNK_BYTES);
            let wide = map_bytes(2 * CHUNK_BYTES);
            start = wide.next_multiple_of(CHUNK_BYTES);
            unmap_bytes(wide, start - wide);
            unmap_bytes(start + CHUNK_BYTES, wide + CHUNK_BYTES - start);
        }
        prefer_huge(start, true);
        start
    }

    pub fn unmap(start: usize) {
        unmap_bytes(start, CHUNK_BYTES);
    }

    /// A wish: what the system makes of it changes nothing but speed.
    pub fn prefer_huge(start: usize, wanted: bool) {
        #[cfg(target_os = "linux")]
        // SAFETY: advice about a mapping of ours, which does not touch its contents.
        unsafe {
            let advice = if wanted { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
            libc::madvise(pointer(start).as_ptr().cast(), CHUNK_BYTES, advice);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (start, wanted);
    }

    /// Let go of what is in free pages.
    pub fn discard(start: usize, bytes: usize) {
        // SAFETY: the pages are free: nobody reads them before they are zeroed.
        unsafe { libc::madvise(pointer(start).as_ptr().cast(), bytes, libc::MADV_DONTNEED) };
    }
}

#[cfg(not(unix))]
mod system {
    use super::CHUNK_BYTES;
    use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
    use std::ptr::NonNull;

    fn layout() -> Layout {
        Layout::from_size_align(CHUNK_BYTES, CHUNK_BYTES).expect("a power of two")
    }

    pub fn pointer(address: usize) -> NonNull<u8> {
        NonNull::new(std::ptr::with_exposed_provenance_mut(address)).expect("no page is at 0")
    }

    pub fn map() -> usize {
        // SAFETY: the size is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout()) });
        let start = start.unwrap_or_else(|| handle_alloc_error(layout()));
        start.as_ptr().expose_provenance()
    }

    pub fn unmap(start: usize) {
        // SAFETY: it came from `map`, and is nobody's.
        unsafe { dealloc(pointer(start).as_ptr(), layout()) };
    }

    pub fn prefer_huge(_: usize, _: bool) {}
    pub fn discard(_: usize, _: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zeroed_and_nobody_elses() {
        for round in 0..3 {
            let sizes = (0..1500).map(|n| if n % 5 == 0 { LARGE_PAGE_BYTES } else { PAGE_BYTES });
            let taken: Vec<_> = sizes.map(|bytes| (take(bytes), bytes)).collect();
            for &(page, bytes) in &taken {
                assert!(page.addr().get().is_multiple_of(bytes));
                // SAFETY: the page is ours.
                let content = unsafe { std::slice::from_raw_parts_mut(page.as_ptr(), bytes) };
                assert!(content.iter().all(|&byte| byte == 0), "round {round}");
                content.fill(7);
            }
            // SAFETY: they came from `take` and are forgotten here.
            taken.into_iter().for_each(|(page, bytes)| unsafe { give(page, bytes) });
        }
    }

    #[test]
    fn what_one_gives_back_the_next_one_takes() {
        for bytes in [PAGE_BYTES, LARGE_PAGE_BYTES] {
            let mut pool = Pool::of(bytes);
            let taken: Vec<_> = (0..3 * pool.chunk_pages()).map(|_| pool.take().0).collect();
            taken.iter().step_by(2).for_each(|&page| pool.give(page));
            let again: BTreeSet<_> = taken.iter().step_by(2).map(|_| pool.take().0).collect();
            assert_eq!(again, taken.iter().step_by(2).copied().collect());
            assert_eq!(pool.chunks.len(), 3);
            taken.into_iter().for_each(|page| pool.give(page));
            assert_eq!(pool.chunks.len(), 1, "wholly free chunks go back but for one");
        }
    }

    #[test]
    fn a_chunk_that_is_nearly_free_keeps_what_is_in_use() {
        for bytes in [PAGE_BYTES, LARGE_PAGE_BYTES] {
            let mut pool = Pool::of(bytes);
            let taken: Vec<_> = (0..pool.chunk_pages()).map(|_| pool.take().0).collect();
            // SAFETY: the pages are ours.
            taken.iter().for_each(|page| unsafe { page.as_ptr().write(9) });
            let (kept, gone) = taken.split_at(taken.len() / 8);
            gone.iter().for_each(|&page| pool.give(page));
            assert!(pool.chunks.values().all(|chunk| chunk.is_sparse));
            // SAFETY: as above.
            assert!(kept.iter().all(|page| unsafe { page.as_ptr().read() } == 9));
            let again: Vec<_> = gone.iter().map(|_| pool.take()).collect();
            assert!(pool.chunks.values().all(|chunk| !chunk.is_sparse));
            again.iter().for_each(|(_, is_fresh)| assert!(!is_fresh));
            taken.into_iter().for_each(|page| pool.give(page));
        }
    }
}
