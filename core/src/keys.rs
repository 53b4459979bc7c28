//! Block keys: our own name of a block, the same in every source that holds it.
//!
//! Contract: the bytes that are hashed are those of `aibrix_extproc/index/keys.py`, which says
//! why they are as they are. Both back ends must give the same 64 bits: predictions that were
//! made with one are compared with keys of the other.
//!
//! Shape: one XXH3 call per block, each with the key before it as its seed, so a chain is as slow
//! as the latency of XXH3, not as its throughput. Extras are read straight from MessagePack.

use crate::wire::{Bad, Read, Reader};
use rmp::Marker;
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub const TOKEN_BYTES: usize = 4;
const USUAL_BLOCK_BYTES: usize = 16 * TOKEN_BYTES;
const MAX_EXTRAS_NESTING: u32 = 8;
const ROOT_PREFIX: &[u8] = b"aibrix-extproc block key 1";

/// What a prompt's tokens belong to beside the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adapter<'a> {
    None,
    /// UTF-8, or what Python's `surrogatepass` makes of a lone surrogate.
    Named(&'a [u8]),
    /// An id that nobody gave a name: no request has this root.
    Nameless(i128),
}

/// The key before block 0. `block_size` is in tokens.
pub fn root(block_size: u32, adapter: Adapter) -> u64 {
    let mut bytes = Vec::with_capacity(64);
    bytes.extend_from_slice(ROOT_PREFIX);
    bytes.extend_from_slice(&block_size.to_le_bytes());
    match adapter {
        Adapter::None => bytes.push(0),
        Adapter::Named(name) => {
            bytes.push(1);
            bytes.extend_from_slice(name);
        }
        Adapter::Nameless(id) => {
            bytes.push(2);
            bytes.extend_from_slice(&id.to_le_bytes());
        }
    }
    xxh3_64_with_seed(&bytes, 0)
}

/// The key of a block without extras. `tokens` are its ids, four bytes each, little-endian.
#[inline(always)]
pub fn plain(parent: u64, tokens: &[u8]) -> u64 {
    // The usual length by itself: of code made for it alone half is left.
    match <&[u8; USUAL_BLOCK_BYTES]>::try_from(tokens) {
        Ok(usual) => xxh3_64_with_seed(usual, parent),
        Err(_) => xxh3_64_with_seed(tokens, parent),
    }
}

/// The key of a block; `extras` encoded, empty where it has none.
pub fn block(parent: u64, tokens: &[u8], extras: &[u8]) -> u64 {
    let key = plain(parent, tokens);
    if extras.is_empty() { key } else { xxh3_64_with_seed(extras, key) }
}

/// The extras of block 0 of a request or an SGLang event: its salt. Nothing for an empty one.
pub fn encode_salt(salt: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if !salt.is_empty() {
        out.push(b'l');
        out.extend_from_slice(&1u32.to_le_bytes());
        encode_bytes(b's', salt, &mut out);
        pad(0, &mut out);
    }
    out
}

/// Encode one block's extras, a MessagePack list at `reader`, to the end of `out`; nothing for an
/// empty list. `adapter` is left out where it leads. Bad: a value that has no place in a key.
pub fn encode_extras(reader: &mut Reader, adapter: Option<&[u8]>, out: &mut Vec<u8>) -> Read<()> {
    let mut count = reader.array()?;
    if let (Some(name), true) = (adapter, count > 0) {
        let mut first = *reader;
        if first.raw_text().is_ok_and(|text| text == name) {
            *reader = first;
            count -= 1;
        }
    }
    if count == 0 {
        return Ok(());
    }
    let start = out.len();
    encode_list(reader, count, MAX_EXTRAS_NESTING - 1, out)?;
    pad(start, out);
    Ok(())
}

/// To a length of 4k + 1, so that extras are never read as tokens.
fn pad(start: usize, out: &mut Vec<u8>) {
    while (out.len() - start) % TOKEN_BYTES != 1 {
        out.push(0);
    }
}

fn encode_list(reader: &mut Reader, count: usize, nesting: u32, out: &mut Vec<u8>) -> Read<()> {
    out.push(b'l');
    out.extend_from_slice(&(count as u32).to_le_bytes());
    for _ in 0..count {
        encode_value(reader, nesting, out)?;
    }
    Ok(())
}

fn encode_value(reader: &mut Reader, nesting: u32, out: &mut Vec<u8>) -> Read<()> {
    match reader.peek()? {
        Marker::Null => {
            reader.nil()?;
            out.push(b'n');
        }
        Marker::False | Marker::True => {
            out.extend_from_slice(&[b'?', u8::from(reader.peek()? == Marker::True)]);
            reader.skip()?;
        }
        Marker::F32 | Marker::F64 => {
            out.push(b'f');
            out.extend_from_slice(&reader.float()?.to_le_bytes());
        }
        Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
            encode_bytes(b's', reader.text()?.as_bytes(), out);
        }
        Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
            encode_bytes(b'b', reader.binary()?, out);
        }
        Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => {
            let inner = nesting.checked_sub(1).ok_or(Bad)?;
            let count = reader.array()?;
            encode_list(reader, count, inner, out)?;
        }
        _ => {
            let value = reader.integer()?;
            out.push(b'i');
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
    Ok(())
}

fn encode_bytes(kind: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|id| id.to_le_bytes()).collect()
    }

    #[test]
    fn keys_are_those_of_the_reference() {
        let all = tokens(&(1..=12).collect::<Vec<u32>>());
        let plain = crate::index::block_keys(&all, 4, None, None);
        assert_eq!(plain, [0x5e761417a482a0e9, 0xe60980c35dc5626e, 0x27b101e86a4b6828]);
        let salt = "tenant-ä".as_bytes();
        let salted = crate::index::block_keys(&all, 4, Some(b"adapter"), Some(salt));
        assert_eq!(salted, [0x51661f9713b5b48f, 0xcf0ca45868df3ebc, 0xf1a8da9273957c6c]);
    }

    #[test]
    fn extras_are_never_as_long_as_tokens() {
        for length in 1..40 {
            assert_eq!(encode_salt(&vec![b'x'; length]).len() % TOKEN_BYTES, 1);
        }
        assert!(encode_salt(b"").is_empty());
    }

    #[test]
    fn an_adapter_that_leads_is_left_out() {
        let list = [&[0x92, 0xa2], &b"ad"[..], &[0xa1], b"s"].concat();
        let mut out = Vec::new();
        encode_extras(&mut Reader::new(&list), Some(b"ad"), &mut out).unwrap();
        assert_eq!(out, encode_salt(b"s"));
    }
}
