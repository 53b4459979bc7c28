//! The values of an event's fields, checked for their types.
//!
//! Contract: what a value may be is the reference's `events.py`; Bad is what it may not be. Knows
//! no encoding of events, and no other event.

use super::fields::Field;
use super::{ExtraKeys, Lists, Stored};
use crate::names::Names;
use crate::wire::{Bad, Check, Read, Reader};
use rmp::Marker;
use std::ops::Range;

const MAX_HASH_BYTES: usize = 64;
const MAX_MEDIUM_CHARACTERS: usize = 64;

pub fn read_stored<'a>(
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

pub fn read_hashes(reader: &mut Reader, names: &Names, lists: &mut Lists) -> Read<Range<usize>> {
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

pub fn read_medium<'a>(reader: &mut Reader<'a>) -> Read<Option<&'a str>> {
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
