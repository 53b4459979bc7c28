//! Pages for tables: 4 KiB each, zeroed, cut from chunks of 2 MiB that the system may back with
//! one huge page.
//!
//! Contract: a page belongs to whoever took it, until it is given back. Memory goes back to the
//! system when a chunk is wholly free (one is kept), and page by page where three quarters of a
//! chunk are free. Where the system grants no huge pages, or has no such thing, all works alike.
//!
//! Why pages: tables grow by a third, over and over, many of them at the same time. All of them
//! being made of equal pieces, what one grows out of always fits another, and nothing is moved to
//! make room. Why chunks: with 4 KiB per translation a look-up of a cold block waited for the
//! processor's page tables longer than for the block (core/README.md has the figures).

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;

pub const PAGE_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 2 << 20;
const CHUNK_PAGES: usize = CHUNK_BYTES / PAGE_BYTES;
/// Free pages from which on a chunk keeps only what is in use, and down to which it does so.
const SPARSE_FROM: usize = CHUNK_PAGES * 3 / 4;
const SPARSE_TO: usize = CHUNK_PAGES / 2;

struct Chunk {
    /// A bit for each page.
    free: [u64; CHUNK_PAGES / 64],
    free_pages: usize,
    /// Pages from here on were never handed out: the system's zeros are still in them.
    fresh_from: usize,
    /// Its free pages are the system's.
    is_sparse: bool,
}

/// Chunks by their address, and those of them that have a free page.
struct Pool {
    chunks: BTreeMap<usize, Chunk>,
    open: BTreeSet<usize>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { chunks: BTreeMap::new(), open: BTreeSet::new() });

/// So many zeroed pages in a row, at an address that is a multiple of a page.
pub fn take(count: usize) -> NonNull<u8> {
    if count > CHUNK_PAGES {
        let start = system::map(count * PAGE_BYTES);
        system::prefer_huge(start, count * PAGE_BYTES, true);
        return system::pointer(start);
    }
    let (start, used) = POOL.lock().take(count);
    // SAFETY: the pages were free, so that nobody else knows them.
    unsafe { start.as_ptr().write_bytes(0, used * PAGE_BYTES) };
    start
}

/// Give pages back.
///
/// # Safety
/// `take` gave them, as many, and nobody uses them any more.
pub unsafe fn give(start: NonNull<u8>, count: usize) {
    if count > CHUNK_PAGES {
        system::unmap(start.as_ptr().expose_provenance(), count * PAGE_BYTES);
    } else {
        POOL.lock().give(start, count);
    }
}

impl Pool {
    /// Pages of the lowest chunk that has them, so that the highest run empty; how many of them,
    /// from the first on, are no longer the system's zeros.
    fn take(&mut self, count: usize) -> (NonNull<u8>, usize) {
        let found = self.open.iter().find_map(|&start| {
            let chunk = &self.chunks[&start];
            let first = (chunk.free_pages >= count).then(|| chunk.find_run(count))??;
            Some((start, first))
        });
        let (start, first) = found.unwrap_or_else(|| (self.add(), 0));
        let chunk = self.chunks.get_mut(&start).expect("an open chunk is a chunk");
        (first..first + count).for_each(|page| chunk.free[page / 64] &= !(1 << (page % 64)));
        chunk.free_pages -= count;
        if chunk.free_pages == 0 {
            self.open.remove(&start);
        }
        if chunk.is_sparse && chunk.free_pages <= SPARSE_TO {
            chunk.is_sparse = false;
            system::prefer_huge(start, CHUNK_BYTES, true);
        }
        let used = chunk.fresh_from.saturating_sub(first).min(count);
        chunk.fresh_from = chunk.fresh_from.max(first + count);
        (system::pointer(start + first * PAGE_BYTES), used)
    }

    fn add(&mut self) -> usize {
        let start = system::map_chunk();
        let chunk = Chunk {
            free: [u64::MAX; CHUNK_PAGES / 64],
            free_pages: CHUNK_PAGES,
            fresh_from: 0,
            is_sparse: false,
        };
        self.chunks.insert(start, chunk);
        self.open.insert(start);
        start
    }

    fn give(&mut self, start: NonNull<u8>, count: usize) {
        let at = start.as_ptr().expose_provenance();
        let start = at & !(CHUNK_BYTES - 1);
        let first = (at - start) / PAGE_BYTES;
        let chunk = self.chunks.get_mut(&start).expect("a page of a chunk");
        (first..first + count).for_each(|page| chunk.free[page / 64] |= 1 << (page % 64));
        chunk.free_pages += count;
        self.open.insert(start);
        if chunk.free_pages == CHUNK_PAGES {
            let is_free = |chunk: &Chunk| chunk.free_pages == CHUNK_PAGES;
            if self.chunks.values().filter(|chunk| is_free(chunk)).count() > 1 {
                self.chunks.remove(&start);
                self.open.remove(&start);
                system::unmap(start, CHUNK_BYTES);
            }
        } else if chunk.is_sparse {
            system::discard(at, count);
        } else if chunk.free_pages >= SPARSE_FROM && chunk.fresh_from == CHUNK_PAGES {
            chunk.is_sparse = true;
            system::prefer_huge(start, CHUNK_BYTES, false);
            for (first, pages) in chunk.runs() {
                system::discard(start + first * PAGE_BYTES, pages);
            }
        }
    }
}

impl Chunk {
    fn is_free(&self, page: usize) -> bool {
        self.free[page / 64] >> (page % 64) & 1 == 1
    }

    /// The first of so many free neighbours.
    fn find_run(&self, count: usize) -> Option<usize> {
        if count == 1 {
            let word = self.free.iter().position(|&word| word != 0)?;
            return Some(word * 64 + self.free[word].trailing_zeros() as usize);
        }
        self.runs().find(|&(_, pages)| pages >= count).map(|(first, _)| first)
    }

    /// (the first page, how many) of neighbours that are free.
    fn runs(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut page = 0;
        std::iter::from_fn(move || {
            page = (page..CHUNK_PAGES).find(|&page| self.is_free(page))?;
            let first = page;
            page = (page..CHUNK_PAGES).find(|&page| !self.is_free(page)).unwrap_or(CHUNK_PAGES);
            Some((first, page - first))
        })
    }
}

/// Chunks from the system, by address.
#[cfg(unix)]
mod system {
    use super::{CHUNK_BYTES, PAGE_BYTES};
    use std::alloc::{Layout, handle_alloc_error};
    use std::ptr::{NonNull, null_mut};

    pub fn pointer(address: usize) -> NonNull<u8> {
        NonNull::new(std::ptr::with_exposed_provenance_mut(address)).expect("no page is at 0")
    }

    /// Zeroed memory, at any page.
    pub fn map(bytes: usize) -> usize {
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

    pub fn unmap(start: usize, bytes: usize) {
        if bytes > 0 {
            // SAFETY: it was mapped here, and is nobody's.
            unsafe { libc::munmap(pointer(start).as_ptr().cast(), bytes) };
        }
    }

    /// A chunk at a multiple of its size, zeroed.
    pub fn map_chunk() -> usize {
        // New kernels align it by themselves; else cut one out of twice as much.
        let start = map(CHUNK_BYTES);
        let start = if start.is_multiple_of(CHUNK_BYTES) {
            start
        } else {
            unmap(start, CHUNK_BYTES);
            let wide = map(2 * CHUNK_BYTES);
            let start = wide.next_multiple_of(CHUNK_BYTES);
            unmap(wide, start - wide);
            unmap(start + CHUNK_BYTES, wide + CHUNK_BYTES - start);
            start
        };
        prefer_huge(start, CHUNK_BYTES, true);
        start
    }

    /// A wish: what the system makes of it changes nothing but speed.
    pub fn prefer_huge(start: usize, bytes: usize, wanted: bool) {
        #[cfg(target_os = "linux")]
        // SAFETY: advice about a mapping of ours, which does not touch its contents.
        unsafe {
            let advice = if wanted { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
            libc::madvise(pointer(start).as_ptr().cast(), bytes, advice);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (start, bytes, wanted);
    }

    /// Let go of what is in free pages.
    pub fn discard(start: usize, pages: usize) {
        // SAFETY: the pages are free: nobody reads them before they are zeroed.
        unsafe {
            let bytes = pages * PAGE_BYTES;
            libc::madvise(pointer(start).as_ptr().cast(), bytes, libc::MADV_DONTNEED);
        }
    }
}

#[cfg(not(unix))]
mod system {
    use super::CHUNK_BYTES;
    use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
    use std::ptr::NonNull;

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, CHUNK_BYTES).expect("a power of two")
    }

    pub fn pointer(address: usize) -> NonNull<u8> {
        NonNull::new(std::ptr::with_exposed_provenance_mut(address)).expect("no page is at 0")
    }

    pub fn map(bytes: usize) -> usize {
        // SAFETY: the size is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout(bytes)) });
        let start = start.unwrap_or_else(|| handle_alloc_error(layout(bytes)));
        start.as_ptr().expose_provenance()
    }

    pub fn map_chunk() -> usize {
        map(CHUNK_BYTES)
    }

    pub fn unmap(start: usize, bytes: usize) {
        // SAFETY: it came from `map`, and is nobody's.
        unsafe { dealloc(pointer(start).as_ptr(), layout(bytes)) };
    }

    pub fn prefer_huge(_: usize, _: usize, _: bool) {}
    pub fn discard(_: usize, _: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool { chunks: BTreeMap::new(), open: BTreeSet::new() }
    }

    #[test]
    fn pages_are_zeroed_and_nobody_elses() {
        let counts = [1, 1, 3, 17, 200, 1, 511, 512, 513, 2000, 1];
        for round in 0..20 {
            let mut taken: Vec<(NonNull<u8>, usize)> = Vec::new();
            for count in counts.iter().cycle().skip(round).take(40) {
                let start = take(*count);
                // SAFETY: the pages are ours.
                let bytes =
                    unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), count * PAGE_BYTES) };
                assert!(bytes.iter().all(|&byte| byte == 0), "round {round}");
                bytes.fill(7);
                taken.push((start, *count));
                if taken.len().is_multiple_of(3) {
                    let (start, count) = taken.swap_remove(round % taken.len());
                    // SAFETY: they came from `take` and are forgotten here.
                    unsafe { give(start, count) };
                }
            }
            // SAFETY: as above.
            taken.into_iter().for_each(|(start, count)| unsafe { give(start, count) });
        }
    }

    #[test]
    fn what_one_gives_back_the_next_one_takes() {
        let mut pool = pool();
        let taken: Vec<_> = (0..3 * CHUNK_PAGES).map(|_| pool.take(1).0).collect();
        taken.iter().step_by(2).for_each(|&page| pool.give(page, 1));
        let again: BTreeSet<_> = (0..3 * CHUNK_PAGES / 2).map(|_| pool.take(1).0).collect();
        assert_eq!(again, taken.iter().step_by(2).copied().collect());
        assert_eq!(pool.chunks.len(), 3);
        taken.into_iter().for_each(|page| pool.give(page, 1));
        assert_eq!(pool.chunks.len(), 1, "wholly free chunks go back but for one");
    }

    #[test]
    fn a_chunk_that_is_nearly_free_keeps_what_is_in_use() {
        let mut pool = pool();
        let taken: Vec<_> = (0..CHUNK_PAGES).map(|_| pool.take(1).0).collect();
        // SAFETY: the pages are ours.
        taken.iter().for_each(|page| unsafe { page.as_ptr().write(9) });
        let (kept, gone) = taken.split_at(CHUNK_PAGES / 8);
        gone.iter().for_each(|&page| pool.give(page, 1));
        assert!(pool.chunks.values().all(|chunk| chunk.is_sparse));
        // SAFETY: as above.
        assert!(kept.iter().all(|page| unsafe { page.as_ptr().read() } == 9));
        let again: Vec<_> = gone.iter().map(|_| pool.take(1)).collect();
        assert!(pool.chunks.values().all(|chunk| !chunk.is_sparse));
        again.iter().for_each(|(_, used)| assert_eq!(*used, 1));
        taken.into_iter().for_each(|page| pool.give(page, 1));
    }
}
