//! One source's part of the index as bytes: what `apply` needs to go on as if nothing had been.
//!
//! Contract: the layout is that of `aibrix_extproc/index/saved.py`, byte for byte, and what is
//! refused is the same. Knows no file and no sequence number.
//!
//! Shape: an export copies the tables under the source's lock, then sorts and writes without it.
//! An import checks all bytes first, where they lie: nothing is made that they do not justify. Then
//! it fills a state that no reader counts, with no lock held, and puts it in place at the end.

use crate::keys::TOKEN_BYTES;
use crate::orphans::Parked;
use crate::source::Source;
use crate::state::{MAX_GROUPS, MAX_SHELVES, State};
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use xxhash_rust::xxh3::xxh3_64;

const VERSION: u32 = 1;
const MAGIC: &[u8] = b"AIBKVSRC";
const CHECKSUM_BYTES: usize = 8;
const MAX_MEDIUM_CHARACTERS: usize = 64;
/// Of one block.
const MAX_COPIES: u64 = 1 << 48;
/// Blocks that are placed before others are let free memory and see the index's size.
const STRETCH_BLOCKS: usize = 256;

/// Why bytes are refused, or a source does not take them; for people.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused(pub String);

type Read<T> = Result<T, Refused>;

fn damaged(why: &str) -> Refused {
    Refused(format!("the export is damaged: {why}"))
}

fn check(good: bool, why: &str) -> Read<()> {
    if good { Ok(()) } else { Err(damaged(why)) }
}

// -- writing -----------------------------------------------------------------------------------

/// A copy of one shelf.
struct Copied {
    medium: Box<str>,
    group: u8,
    block_size: u64,
    /// (name, key), in no order.
    blocks: Vec<(u64, u64)>,
    /// (name, copies beyond the first), in no order.
    more: Vec<(u64, u64)>,
}

/// All that `apply` needs of a source to go on elsewhere. Without `with_orphans` there is no token
/// in it, and a parent that comes later finds no children.
pub fn export(source: &Source, with_orphans: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut orphans = vec![0; size_of::<u32>()];
    let shelves: Vec<Copied> = {
        let present = source.present.lock();
        let state = &present.state;
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&source.naming.load(Ordering::Relaxed).to_le_bytes());
        out.push(u8::from(state.full));
        let (named, indexed) = state.kinds();
        for value in [state.lookahead(), named, indexed] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        if with_orphans {
            orphans.clear();
            write_orphans(state, &mut orphans);
        }
        let copied = |shelf: &crate::state::Shelf| Copied {
            medium: shelf.medium.clone(),
            group: shelf.group,
            block_size: shelf.block_size,
            blocks: shelf.blocks().collect(),
            more: shelf.more().collect(),
        };
        state.shelves.iter().map(copied).collect()
    };
    out.extend_from_slice(&(shelves.len() as u32).to_le_bytes());
    let bytes: usize = shelves.iter().map(|s| 16 * (s.blocks.len() + s.more.len()) + 300).sum();
    out.reserve(bytes + orphans.len() + CHECKSUM_BYTES);
    for mut shelf in shelves {
        out.extend_from_slice(&(shelf.medium.len() as u16).to_le_bytes());
        out.extend_from_slice(shelf.medium.as_bytes());
        out.push(shelf.group);
        out.extend_from_slice(&(shelf.block_size as u32).to_le_bytes());
        write_columns(&mut shelf.blocks, &mut out);
        write_columns(&mut shelf.more, &mut out);
    }
    out.extend_from_slice(&orphans);
    out.extend_from_slice(&xxh3_64(&out).to_le_bytes());
    out
}

fn write_columns(pairs: &mut [(u64, u64)], out: &mut Vec<u8>) {
    pairs.sort_unstable();
    out.extend_from_slice(&(pairs.len() as u64).to_le_bytes());
    pairs.iter().for_each(|(name, _)| out.extend_from_slice(&name.to_le_bytes()));
    pairs.iter().for_each(|(_, value)| out.extend_from_slice(&value.to_le_bytes()));
}

fn write_orphans(state: &State, out: &mut Vec<u8>) {
    out.extend_from_slice(&(state.orphans.len() as u32).to_le_bytes());
    for block in state.orphans.oldest_first() {
        out.extend_from_slice(&(block.at.0 as u32).to_le_bytes());
        for value in [block.at.1, block.parent, block.copies] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        for bytes in [&block.tokens, &block.extras] {
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(bytes);
        }
    }
}

// -- reading -----------------------------------------------------------------------------------

/// Numbers where they lie in the bytes.
#[derive(Clone, Copy)]
struct Column<'a>(&'a [u8]);

impl<'a> Column<'a> {
    fn values(self) -> impl Iterator<Item = u64> + 'a {
        self.0.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
    }
}

/// Names in rising order, and what belongs to each.
#[derive(Clone, Copy)]
struct Columns<'a> {
    names: Column<'a>,
    values: Column<'a>,
}

impl<'a> Columns<'a> {
    fn pairs(self) -> impl Iterator<Item = (u64, u64)> + 'a {
        self.names.values().zip(self.values.values())
    }
}

struct SavedShelf<'a> {
    medium: &'a str,
    group: u8,
    block_size: u32,
    blocks: Columns<'a>,
    more: Columns<'a>,
}

struct SavedOrphan<'a> {
    shelf: usize,
    name: u64,
    parent: u64,
    copies: u64,
    tokens: &'a [u8],
    extras: &'a [u8],
}

/// An export that was checked.
pub struct Saved<'a> {
    naming: u64,
    full: bool,
    lookahead: u64,
    named: u64,
    indexed: u64,
    shelves: Vec<SavedShelf<'a>>,
    orphans: Vec<SavedOrphan<'a>>,
}

/// What the bytes say. Takes a small multiple of them at most.
pub fn decode(data: &[u8]) -> Read<Saved<'_>> {
    if !data.starts_with(MAGIC) {
        return Err(Refused("these bytes are no export of a source".into()));
    }
    let head = MAGIC.len() + size_of::<u32>();
    let end = data.len().checked_sub(CHECKSUM_BYTES).filter(|&end| end >= head);
    let (body, checksum) = data.split_at(end.ok_or_else(|| damaged("it ends too early"))?);
    let mut reader = Reader { left: &body[MAGIC.len()..] };
    let version = reader.u32()?;
    if version != VERSION {
        let why = format!("an export of version {version}; this index reads version {VERSION}");
        return Err(Refused(why));
    }
    check(xxh3_64(body).to_le_bytes() == checksum, "its checksum is wrong")?;
    reader.source()
}

struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Read<&'a [u8]> {
        let (taken, left) =
            self.left.split_at_checked(length).ok_or_else(|| damaged("it ends too early"))?;
        self.left = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let (taken, left) =
            self.left.split_first_chunk().ok_or_else(|| damaged("it ends too early"))?;
        self.left = left;
        Ok(*taken)
    }

    fn u8(&mut self) -> Read<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u16(&mut self) -> Read<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Read<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Read<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn source(mut self) -> Read<Saved<'a>> {
        let (naming, full) = (self.u64()?, self.u8()?);
        let (lookahead, named, indexed) = (self.u64()?, self.u64()?, self.u64()?);
        check(full <= 1, "a flag is neither 0 nor 1")?;
        check(indexed & !named == 0, "a group is indexed that named no kind")?;
        let count = self.u32()?;
        check(count as usize <= MAX_SHELVES, &format!("it has {count} shelves"))?;
        let shelves = (0..count).map(|_| self.shelf()).collect::<Read<Vec<_>>>()?;
        check_shelves(&shelves)?;
        let mut orphans = Vec::new();
        for _ in 0..self.u32()? {
            orphans.push(self.orphan(shelves.len())?);
        }
        let mut places = HashSet::new();
        let alone = orphans.iter().all(|orphan| places.insert((orphan.shelf, orphan.name)));
        check(alone, "an orphan stands twice")?;
        check(self.left.is_empty(), "bytes follow its end")?;
        Ok(Saved { naming, full: full == 1, lookahead, named, indexed, shelves, orphans })
    }

    fn shelf(&mut self) -> Read<SavedShelf<'a>> {
        let length = self.u16()?;
        let medium = std::str::from_utf8(self.take(length.into())?);
        let medium = medium.map_err(|_| damaged("a medium is no UTF-8"))?;
        let characters = medium.chars().count();
        check(characters <= MAX_MEDIUM_CHARACTERS, "the name of a medium is too long")?;
        let (group, block_size) = (self.u8()?, self.u32()?);
        check(i128::from(group) < MAX_GROUPS, &format!("a group has the number {group}"))?;
        let blocks = self.columns("the blocks of a shelf")?;
        let more = self.columns("the copies of a shelf")?;
        check(blocks.names.0.is_empty() || block_size > 0, "a shelf has blocks of no size")?;
        let mut names = blocks.names.values();
        let placed = more.names.values().all(|name| names.any(|placed| placed == name));
        check(placed, "there are copies of no block")?;
        check(more.values.values().all(is_a_number_of_copies), "a number of copies is impossible")?;
        Ok(SavedShelf { medium, group, block_size, blocks, more })
    }

    fn columns(&mut self, what: &str) -> Read<Columns<'a>> {
        let count = self.u64()?;
        let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(8));
        let bytes = bytes.ok_or_else(|| damaged("it ends too early"))?;
        let columns =
            Columns { names: Column(self.take(bytes)?), values: Column(self.take(bytes)?) };
        let rising = columns.names.values().is_sorted_by(|one, next| one < next);
        check(rising, &format!("{what} are not in order, or stand twice"))?;
        Ok(columns)
    }

    fn orphan(&mut self, shelves: usize) -> Read<SavedOrphan<'a>> {
        let shelf = self.u32()? as usize;
        let (name, parent, copies) = (self.u64()?, self.u64()?, self.u64()?);
        check(shelf < shelves, "an orphan is on no shelf")?;
        check(is_a_number_of_copies(copies), "a number of copies is impossible")?;
        let (tokens, extras) = (self.bytes()?, self.bytes()?);
        let whole = !tokens.is_empty() && tokens.len() % TOKEN_BYTES == 0;
        check(whole, "an orphan has no whole tokens")?;
        Ok(SavedOrphan { shelf, name, parent, copies, tokens, extras })
    }

    fn bytes(&mut self) -> Read<&'a [u8]> {
        let length = self.u32()?;
        self.take(length as usize)
    }
}

fn is_a_number_of_copies(copies: u64) -> bool {
    (1..=MAX_COPIES).contains(&copies)
}

/// A place has one shelf, and a name one meaning on all of them.
fn check_shelves(shelves: &[SavedShelf]) -> Read<()> {
    for (number, shelf) in shelves.iter().enumerate() {
        let same = |s: &SavedShelf| (s.medium, s.group) == (shelf.medium, shelf.group);
        check(!shelves[..number].iter().any(same), "a shelf stands twice")?;
    }
    if shelves.len() > 1 {
        let mut all: Vec<_> = shelves.iter().flat_map(|shelf| shelf.blocks.pairs()).collect();
        all.sort_unstable();
        let one_meaning = all.windows(2).all(|pair| pair[0].0 != pair[1].0 || pair[0] == pair[1]);
        check(one_meaning, "a hash means two blocks")?;
    }
    Ok(())
}

// -- importing ---------------------------------------------------------------------------------

/// Make a blank source hold what an exported one did. What the index has no room for is left out,
/// and the source is full then; of too many orphans the oldest are. A clear meanwhile wins.
pub fn import(source: &Source, saved: &Saved, max_orphans: usize) -> Result<(), Refused> {
    let in_use =
        || Refused("import into a source that was just added: this one is in use".to_string());
    let (mut state, replaced) = {
        let present = source.present.lock();
        if !present.state.is_blank() {
            return Err(in_use());
        }
        (present.state.emptied(), present.replaced)
    };
    fill(&mut state, saved, max_orphans);
    let mut present = source.present.lock();
    let overtaken = present.removed || present.replaced != replaced;
    if overtaken || !present.state.is_blank() {
        drop(present);
        state.sweep();
        return if overtaken { Ok(()) } else { Err(in_use()) };
    }
    source.naming.store(saved.naming, Ordering::Relaxed);
    present.replaced += 1;
    present.state = state;
    // Last, for this is what makes it count for depth.
    for (at, shelf) in saved.shelves.iter().enumerate().filter(|(_, shelf)| shelf.block_size > 0) {
        present.state.note_block_size(at, shelf.block_size.into());
    }
    Ok(())
}

/// Fill a state that nobody counts yet.
fn fill(state: &mut State, saved: &Saved, max_orphans: usize) {
    state.set_kinds(saved.named, saved.indexed);
    state.learn_lookahead(saved.lookahead);
    let pin = &mut crossbeam_epoch::pin();
    for shelf in &saved.shelves {
        let at = state.add_shelf(shelf.medium, shelf.group);
        let mut more = shelf.more.pairs().peekable();
        for (number, (name, key)) in shelf.blocks.pairs().enumerate() {
            if state.place(at, name, key, pin).is_err() {
                break;
            }
            if let Some((_, copies)) = more.next_if(|&(copied, _)| copied == name) {
                state.add_copies(at, name, copies);
            }
            if number % STRETCH_BLOCKS == STRETCH_BLOCKS - 1 {
                pin.repin();
                state.settle();
            }
        }
    }
    for orphan in &saved.orphans[saved.orphans.len().saturating_sub(max_orphans)..] {
        let block = Parked {
            at: (orphan.shelf, orphan.name),
            parent: orphan.parent,
            tokens: orphan.tokens.into(),
            extras: orphan.extras.into(),
            copies: orphan.copies,
        };
        // One that finds no room is left out: the state is full by then.
        let _ = state.park(block, pin);
    }
    state.full |= saved.full;
    state.settle();
}
