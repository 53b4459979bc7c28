//! From a payload to events: what an engine said, checked for its types.
//!
//! Contract: the same events, and the same reasons for what cannot be read, as the reference's
//! `events.py`. An event that cannot be read costs itself; a payload that cannot be cut into
//! events is one unreadable payload, and nothing of it counts.
//!
//! Shape: one pass. Hashes and tokens of all events go into two flat lists that the caller keeps
//! from call to call; text and extras stay where they are, in the payload. Memory is at most a
//! fixed multiple of the payload, because every hash, token and event takes a byte of it at least.
//! Where an event does not read, the walk that only looks for ends (`Reader::skip`) goes over it
//! again; a first pass of that kind over every payload was tried and cost 50 ns per block.

use crate::names::Names;
use crate::reasons::Reason;
use crate::wire::{Bad, Check, Read, Reader};
use rmp::Marker;
use std::ops::Range;

const MAX_HASH_BYTES: usize = 64;
const MAX_MEDIUM_CHARACTERS: usize = 64;
const TAG: &[u8] = b"type";

/// One event, in the order of the payload. The numbers point into `Batch::stored`, `removed`.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Stored(u32),
    Removed(u32),
    Cleared,
    Unreadable(Reason),
}

/// BlockStored. Ranges are of `Batch::hashes` and `Batch::tokens`.
#[derive(Default, Debug)]
pub struct Stored<'a> {
    pub hashes: Range<usize>,
    pub parent: Option<u64>,
    pub tokens: Range<usize>,
    /// Tokens on the wire, those too that do not fit into 32 bits.
    pub token_count: usize,
    pub block_size: i128,
    pub lora_id: Option<i128>,
    pub medium: Option<&'a str>,
    pub lora_name: Option<&'a str>,
    pub extras: Option<ExtraKeys<'a>>,
    pub group: i128,
    pub kind: Option<&'a str>,
    /// Most tokens behind a block that a hash covers.
    pub lookahead: usize,
    pub salt: Option<&'a str>,
}

/// The `extra_keys` of an event: one list, or nil, per block.
#[derive(Clone, Copy, Debug)]
pub struct ExtraKeys<'a> {
    pub count: usize,
    /// Whether any block has any.
    pub any: bool,
    /// The lists, one after another, as MessagePack.
    pub lists: &'a [u8],
}

/// BlockRemoved.
#[derive(Default, Debug)]
pub struct Removed<'a> {
    pub hashes: Range<usize>,
    pub medium: Option<&'a str>,
    pub group: i128,
}

/// What one payload says.
#[derive(Default)]
pub struct Batch<'a> {
    pub timestamp: Option<f64>,
    pub events: Vec<Event>,
    pub stored: Vec<Stored<'a>>,
    pub removed: Vec<Removed<'a>>,
}

/// The flat lists, used again from call to call.
#[derive(Default)]
pub struct Lists {
    pub hashes: Vec<u64>,
    pub tokens: Vec<u32>,
}

impl Lists {
    /// Forget the contents, and memory beyond what usual payloads need.
    pub fn clear(&mut self) {
        const KEPT: usize = 1 << 16;
        self.hashes.clear();
        self.tokens.clear();
        self.hashes.shrink_to(KEPT);
        self.tokens.shrink_to(KEPT);
    }
}

/// The events of `[ts, [event, …], …]`.
pub fn decode<'a>(payload: &'a [u8], names: &Names, lists: &mut Lists) -> Batch<'a> {
    let mut batch = Batch::default();
    if decode_into(&mut batch, payload, names, lists).is_err() {
        batch = Batch { events: vec![Event::Unreadable(Reason::Payload)], ..Batch::default() };
    }
    batch
}

fn decode_into<'a>(
    batch: &mut Batch<'a>,
    payload: &'a [u8],
    names: &Names,
    lists: &mut Lists,
) -> Read<()> {
    let mut reader = Reader::new(payload);
    let items = reader.array()?;
    if items < 2 {
        return Err(Bad);
    }
    batch.timestamp = seconds(&mut reader)?;
    for _ in 0..reader.array()? {
        let event = decode_event(batch, &mut reader, names, lists)?;
        batch.events.push(event);
    }
    for _ in 2..items {
        reader.skip()?;
    }
    if reader.is_at_end() { Ok(()) } else { Err(Bad) }
}

/// A finite number, or None for anything else that has an end.
fn seconds(reader: &mut Reader) -> Read<Option<f64>> {
    let mut number = *reader;
    reader.skip()?;
    let float = number.peek().is_ok_and(|kind| matches!(kind, Marker::F32 | Marker::F64));
    let value = if float { number.float() } else { number.integer().map(|integer| integer as f64) };
    Ok(value.ok().filter(|value| value.is_finite()))
}

/// One event; Bad only where it has no end.
fn decode_event<'a>(
    batch: &mut Batch<'a>,
    reader: &mut Reader<'a>,
    names: &Names,
    lists: &mut Lists,
) -> Read<Event> {
    let (start, hashes, tokens) = (*reader, lists.hashes.len(), lists.tokens.len());
    if let Ok(event) = read_event(batch, reader, names, lists) {
        return Ok(event);
    }
    lists.hashes.truncate(hashes);
    lists.tokens.truncate(tokens);
    *reader = start;
    reader.skip()?;
    Ok(Event::Unreadable(match tag_of(start).as_deref() {
        Some(b"BlockStored") => Reason::UnreadableStored,
        Some(b"BlockRemoved") => Reason::UnreadableRemoved,
        Some(b"AllBlocksCleared") => Reason::UnreadableCleared,
        Some(_) => Reason::UnknownEvent,
        None => Reason::UnreadableEvent,
    }))
}

/// The kind that an event names, where it names exactly one, in text. It is known to have an end.
fn tag_of(mut event: Reader) -> Option<Vec<u8>> {
    if let Ok(items) = { event }.array() {
        event.array().ok()?;
        return if items == 0 { None } else { event.text().ok().map(|tag| tag.into()) };
    }
    let mut found: Option<Option<&[u8]>> = None;
    for _ in 0..event.map().ok()? {
        let key = { event }.raw_text().ok();
        event.skip().ok()?;
        let value = { event }.text().ok().map(str::as_bytes);
        event.skip().ok()?;
        if key == Some(TAG) {
            if found.is_some_and(|before| before != value) {
                return None;
            }
            found = Some(value);
        }
    }
    found.flatten().map(<[u8]>::to_vec)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    BlockHashes,
    Parent,
    TokenIds,
    BlockSize,
    LoraId,
    Medium,
    LoraName,
    ExtraKeys,
    Group,
    Kind,
    /// Read for its validity alone.
    Unused,
    Lookahead,
    Salt,
}

/// In the order of the array encoding.
const STORED: &[(&[u8], Field)] = &[
    (b"block_hashes", Field::BlockHashes),
    (b"parent_block_hash", Field::Parent),
    (b"token_ids", Field::TokenIds),
    (b"block_size", Field::BlockSize),
    (b"lora_id", Field::LoraId),
    (b"medium", Field::Medium),
    (b"lora_name", Field::LoraName),
    (b"extra_keys", Field::ExtraKeys),
    (b"group_idx", Field::Group),
    (b"kv_cache_spec_kind", Field::Kind),
    (b"kv_cache_spec_sliding_window", Field::Unused),
    (b"locality", Field::Unused),
    (b"ownership", Field::Unused),
    (b"session_id", Field::Unused),
    (b"lookahead_token_ids", Field::Lookahead),
    (b"cache_salt", Field::Salt),
];
const STORED_REQUIRED: u32 = 0b1111;
const REMOVED: &[(&[u8], Field)] = &[
    (b"block_hashes", Field::BlockHashes),
    (b"medium", Field::Medium),
    (b"group_idx", Field::Group),
];
const REMOVED_REQUIRED: u32 = 0b1;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tag {
    Stored,
    Removed,
    Cleared,
}

fn tag(reader: &mut Reader) -> Read<Tag> {
    match reader.raw_text()? {
        b"BlockStored" => Ok(Tag::Stored),
        b"BlockRemoved" => Ok(Tag::Removed),
        b"AllBlocksCleared" => Ok(Tag::Cleared),
        _ => Err(Bad),
    }
}

fn read_event<'a>(
    batch: &mut Batch<'a>,
    reader: &mut Reader<'a>,
    names: &Names,
    lists: &mut Lists,
) -> Read<Event> {
    let body = Body::begin(reader)?;
    match body.tag {
        Tag::Stored => {
            let mut event = Stored::default();
            body.read(reader, STORED, STORED_REQUIRED, |field, reader| {
                read_stored(&mut event, field, reader, names, lists)
            })?;
            batch.stored.push(event);
            Ok(Event::Stored(batch.stored.len() as u32 - 1))
        }
        Tag::Removed => {
            let mut event = Removed::default();
            body.read(reader, REMOVED, REMOVED_REQUIRED, |field, reader| {
                match field {
                    Field::BlockHashes => event.hashes = read_hashes(reader, names, lists)?,
                    Field::Medium => event.medium = read_medium(reader)?,
                    _ => event.group = reader.optional(Reader::integer)?.unwrap_or(0),
                }
                Ok(())
            })?;
            batch.removed.push(event);
            Ok(Event::Removed(batch.removed.len() as u32 - 1))
        }
        Tag::Cleared => {
            body.read(reader, &[], 0, |_, _| Ok(()))?;
            Ok(Event::Cleared)
        }
    }
}

/// An event whose kind is known and whose fields are still to be read.
struct Body {
    tag: Tag,
    is_map: bool,
    /// Items or pairs still to be read.
    left: usize,
}

impl Body {
    /// Up to the first field. The tag of a map may stand anywhere in it.
    fn begin(reader: &mut Reader) -> Read<Body> {
        if let Ok(items) = { *reader }.array() {
            reader.array()?;
            let left = items.checked_sub(1).ok_or(Bad)?;
            return Ok(Body { tag: tag(reader)?, is_map: false, left });
        }
        let left = reader.map()?;
        let mut search = *reader;
        for _ in 0..left {
            if search.raw_text()? == TAG {
                return Ok(Body { tag: tag(&mut search)?, is_map: true, left });
            }
            search.pass(Check::Extent)?;
        }
        Err(Bad)
    }

    /// Call `read` for each known field that is there; Bad where a required one is not.
    /// `required` has a bit for each of `fields`.
    fn read<'a>(
        self,
        reader: &mut Reader<'a>,
        fields: &[(&[u8], Field)],
        required: u32,
        mut read: impl FnMut(Field, &mut Reader<'a>) -> Read<()>,
    ) -> Read<()> {
        let mut seen = 0u32;
        for number in 0..self.left {
            let place = if self.is_map {
                let key = reader.raw_text()?;
                if key == TAG {
                    if tag(reader)? != self.tag {
                        return Err(Bad);
                    }
                    continue;
                }
                // Engines send the fields in order: look where the next one should be first.
                let next = (seen.trailing_ones() as usize).min(fields.len());
                fields[next..]
                    .iter()
                    .position(|(name, _)| *name == key)
                    .map(|at| next + at)
                    .or_else(|| fields[..next].iter().position(|(name, _)| *name == key))
            } else {
                (number < fields.len()).then_some(number)
            };
            match place {
                Some(place) => {
                    seen |= 1 << place;
                    read(fields[place].1, reader)?;
                }
                None => reader.pass(Check::Extent)?,
            }
        }
        if seen & required == required { Ok(()) } else { Err(Bad) }
    }
}

fn read_stored<'a>(
    event: &mut Stored<'a>,
    field: Field,
    reader: &mut Reader<'a>,
    names: &Names,
    lists: &mut Lists,
) -> Read<()> {
    match field {
        Field::BlockHashes => event.hashes = read_hashes(reader, names, lists)?,
        Field::Parent => event.parent = reader.optional(|r| read_hash(r, names))?,
        Field::TokenIds => {
            let start = lists.tokens.len();
            event.token_count = reader.u32_list(&mut lists.tokens)?.0;
            event.tokens = start..lists.tokens.len();
        }
        Field::BlockSize => event.block_size = reader.integer()?,
        Field::LoraId => event.lora_id = reader.optional(Reader::integer)?,
        Field::Medium => event.medium = read_medium(reader)?,
        Field::LoraName => event.lora_name = reader.optional(Reader::text)?,
        Field::ExtraKeys => event.extras = reader.optional(read_extra_keys)?,
        Field::Group => event.group = reader.optional(Reader::integer)?.unwrap_or(0),
        Field::Kind => event.kind = reader.optional(Reader::text)?,
        Field::Unused => reader.pass(Check::Value)?,
        Field::Lookahead => event.lookahead = reader.optional(read_lookahead)?.unwrap_or(0),
        Field::Salt => event.salt = reader.optional(Reader::text)?,
    }
    Ok(())
}

fn read_hashes(reader: &mut Reader, names: &Names, lists: &mut Lists) -> Read<Range<usize>> {
    let start = lists.hashes.len();
    for _ in 0..reader.array()? {
        lists.hashes.push(read_hash(reader, names)?);
    }
    Ok(start..lists.hashes.len())
}

/// An engine's hash, an integer or bytes, by the name it has here.
fn read_hash(reader: &mut Reader, names: &Names) -> Read<u64> {
    match reader.peek()? {
        Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
            let bytes = reader.binary()?;
            if bytes.len() > MAX_HASH_BYTES { Err(Bad) } else { Ok(names.of_bytes(bytes)) }
        }
        Marker::U64 => reader.unsigned_64(),
        _ => Ok(names.of_integer(reader.integer()?)),
    }
}

fn read_medium<'a>(reader: &mut Reader<'a>) -> Read<Option<&'a str>> {
    let medium = reader.optional(Reader::text)?;
    match medium {
        Some(text) if text.chars().count() > MAX_MEDIUM_CHARACTERS => Err(Bad),
        _ => Ok(medium),
    }
}

fn read_extra_keys<'a>(reader: &mut Reader<'a>) -> Read<ExtraKeys<'a>> {
    let count = reader.array()?;
    let start = reader.at();
    let mut any = false;
    for _ in 0..count {
        if reader.nil()? {
            continue;
        }
        let items = { *reader }.array()?;
        any |= items > 0;
        reader.pass(Check::Value)?;
    }
    Ok(ExtraKeys { count, any, lists: reader.since(start) })
}

/// One list of tokens for all blocks, or one list (or nil) per block: the length of the longest.
fn read_lookahead(reader: &mut Reader) -> Read<usize> {
    let (mut bare, mut longest) = (0, 0);
    for _ in 0..reader.array()? {
        if reader.nil()? {
            continue;
        }
        if let Ok(items) = { *reader }.array() {
            reader.array()?;
            for _ in 0..items {
                reader.integer()?;
            }
            longest = longest.max(items);
        } else {
            reader.integer()?;
            bare += 1;
        }
    }
    Ok(longest.max(bare))
}
