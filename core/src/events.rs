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
//! again; a first pass of that kind over every payload was tried and cost 50 ns per block. Where an
//! event's fields stand in it is known to `fields`, what they may be to `values`.

mod fields;
mod values;

use crate::names::Names;
use crate::reasons::Reason;
use crate::wire::{Bad, Read, Reader};
use fields::{Body, Field, REMOVED, REMOVED_REQUIRED, STORED, STORED_REQUIRED, Tag, tag_of};
use rmp::Marker;
use std::ops::Range;
use values::{read_hashes, read_medium, read_stored};

/// One event, in the order of the payload. The numbers point into `Batch::stored`, `removed`.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Stored(u32),
    Removed(u32),
    Cleared,
    Unreadable(Reason),
}

/// BlockStored. Ranges are of `Lists::hashes` and `Lists::tokens`.
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
