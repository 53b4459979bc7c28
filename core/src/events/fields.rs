//! The fields of an event: which there are, and where each stands in it.
//!
//! Contract: an event is an array, its fields in their order, or a map, its fields in any order;
//! fields that are not known are passed by. Knows no field's value but the kind of the event.

use crate::wire::{Bad, Check, Read, Reader};

/// The field of a map that names the event's kind.
const TAG: &[u8] = b"type";

/// What is read of a field.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Field {
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
pub const STORED: &[(&[u8], Field)] = &[
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
/// A bit for each that may not be missing.
pub const STORED_REQUIRED: u32 = 0b1111;
pub const REMOVED: &[(&[u8], Field)] = &[
    (b"block_hashes", Field::BlockHashes),
    (b"medium", Field::Medium),
    (b"group_idx", Field::Group),
];
pub const REMOVED_REQUIRED: u32 = 0b1;

/// The kinds of events.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tag {
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

/// The kind that an event names, where it names exactly one, in text. It is known to have an end.
pub fn tag_of(mut event: Reader) -> Option<Vec<u8>> {
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

/// An event whose kind is known and whose fields are still to be read.
pub struct Body {
    pub tag: Tag,
    is_map: bool,
    /// Items or pairs still to be read.
    left: usize,
}

impl Body {
    /// Up to the first field. The tag of a map may stand anywhere in it.
    pub fn begin(reader: &mut Reader) -> Read<Body> {
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
    pub fn read<'a>(
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
