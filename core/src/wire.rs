//! MessagePack, as far as KV events need it: a cursor over bytes that nobody vouches for.
//!
//! Contract: nothing here panics, recurses without a bound, or allocates. A header that promises
//! more than there is ends in `Bad`, as does a value of another type than the one asked for.
//!
//! Shape: `rmp` names the kinds of values; lengths and numbers are read here, by slices that know
//! their end. `rmp::decode` was left out for one reason: it reads one value at a time through a
//! trait, and the list of tokens is where a batch's time goes. `Reader::u32_list` reads it without
//! a branch per token: ids below and above 65,536 take turns at random, and a wrongly guessed
//! branch costs more than the whole token.

use rmp::Marker;
use std::hint::select_unpredictable;

/// The bytes are not what was asked for, or end too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bad;

pub type Read<T> = Result<T, Bad>;

/// Lists within lists that a value may hold before it counts as unreadable. The reference's bound
/// is its interpreter's recursion limit, a little under 1,000.
pub const MAX_NESTING: u32 = 900;

/// How a value that is not used is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Only where it ends.
    Extent,
    /// Also that it could be used: text is UTF-8, times are times, keys of maps can be keys.
    Value,
    /// As `Value`, for what stands in a map's key: no maps, no extensions.
    Key,
}

/// A cursor. `at` moves only past what was read.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

/// The number below 2^32 that begins these eight bytes, and how many of them it takes; None for
/// everything else. Without a branch on the size, which takes turns at random.
#[inline(always)]
fn small_number(word: [u8; 8]) -> Option<(u32, usize)> {
    const U8: u8 = 0xcc;
    let marker = word[0];
    let is_wide = marker >= 0x80;
    let size = marker.wrapping_sub(U8);
    if is_wide && size > 2 {
        return None;
    }
    let bytes = 1usize << (size & 3);
    let behind = ((u64::from_be_bytes(word) << 8) >> (64 - 8 * bytes as u32)) as u32;
    let value = select_unpredictable(is_wide, behind, u32::from(marker));
    Some((value, 1 + select_unpredictable(is_wide, bytes, 0)))
}

/// Tokens of one window.
const WINDOW_TOKENS: usize = 12;
/// Room for as many of five bytes each, and for loads of eight.
const WINDOW_BYTES: usize = 64;

/// What the bytes of a window are, if numbers begin at them: a bit for each byte.
#[cfg(target_arch = "x86_64")]
#[derive(Default)]
struct Kinds {
    /// So many bytes follow it.
    one: u64,
    two: u64,
    four: u64,
    /// None of these, and no number by itself.
    other: u64,
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse2")]
fn kinds(window: &[u8; WINDOW_BYTES]) -> Kinds {
    use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_movemask_epi8, _mm_set_epi64x, _mm_set1_epi8};
    let mut kinds = Kinds::default();
    for (number, bytes) in window.as_chunks::<16>().0.iter().enumerate() {
        let [low, high] = [0, 1].map(|half| i64::from_le_bytes(bytes.as_chunks().0[half]));
        let bytes = _mm_set_epi64x(high, low);
        let bits = |mask: i32| u64::from(mask.cast_unsigned()) << (16 * number);
        let are = |marker: u8| {
            bits(_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(marker.cast_signed()))))
        };
        let (one, two, four) = (are(0xcc), are(0xcd), are(0xce));
        kinds.one |= one;
        kinds.two |= two;
        kinds.four |= four;
        kinds.other |= bits(_mm_movemask_epi8(bytes)) & !(one | two | four);
    }
    kinds
}

/// The first numbers of a window, where all are below 2^32, and how many bytes they take. Where
/// each begins hangs on the kind of the one before: the kinds of all bytes are found first, at
/// once, so that only a few shifts are left to be done one after another.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn small_numbers(window: &[u8; WINDOW_BYTES], out: &mut [u32; WINDOW_TOKENS]) -> Option<usize> {
    // SAFETY: every x86-64 processor has SSE2.
    let kinds = unsafe { kinds(window) };
    two_or_four(window, &kinds, out).or_else(|| up_to_four(window, &kinds, out))
}

/// … where all of them take two bytes or four beside their first.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn two_or_four(
    window: &[u8; WINDOW_BYTES],
    kinds: &Kinds,
    out: &mut [u32; WINDOW_TOKENS],
) -> Option<usize> {
    let usual = kinds.two | kinds.four;
    let (mut at, mut good) = (0usize, 1u64);
    for value in out {
        let is_four = kinds.four >> at & 1;
        good &= usual >> at;
        let word = u64::from_be_bytes(*window[at..].first_chunk()?);
        *value =
            (word >> (40 - 16 * is_four)) as u32 & (0xffff | 0u32.wrapping_sub(is_four as u32));
        at += 3 + 2 * is_four as usize;
    }
    (good == 1).then_some(at)
}

/// … of whatever size.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
fn up_to_four(
    window: &[u8; WINDOW_BYTES],
    kinds: &Kinds,
    out: &mut [u32; WINDOW_TOKENS],
) -> Option<usize> {
    /// Of a number that takes so many bytes.
    const BITS: [u32; 8] = [0, 0x7f, 0xff, 0xffff, 0, u32::MAX, 0, 0];
    let (mut at, mut bad) = (0usize, 0u64);
    for value in out {
        let is = |kind: u64| (kind >> at) & 1;
        let length = 1 + is(kinds.one) + 2 * is(kinds.two) + 4 * is(kinds.four);
        bad |= is(kinds.other);
        let word = u64::from_be_bytes(*window[at..].first_chunk()?);
        *value = (word >> (64 - 8 * length)) as u32 & BITS[length as usize & 7];
        at += length as usize;
    }
    (bad == 0).then_some(at)
}

#[cfg(not(target_arch = "x86_64"))]
fn small_numbers(_: &[u8; WINDOW_BYTES], _: &mut [u32; WINDOW_TOKENS]) -> Option<usize> {
    None
}

impl<'a> Reader<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Reader { data, at: 0 }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn is_at_end(&self) -> bool {
        self.at == self.data.len()
    }

    /// The bytes between an earlier position and this one.
    pub fn since(&self, start: usize) -> &'a [u8] {
        &self.data[start..self.at]
    }

    fn left(&self) -> usize {
        self.data.len() - self.at
    }

    pub fn peek(&self) -> Read<Marker> {
        self.data.get(self.at).map(|&byte| Marker::from_u8(byte)).ok_or(Bad)
    }

    fn marker(&mut self) -> Read<Marker> {
        let marker = self.peek()?;
        self.at += 1;
        Ok(marker)
    }

    fn bytes(&mut self, count: usize) -> Read<&'a [u8]> {
        if count > self.left() {
            return Err(Bad);
        }
        let bytes = &self.data[self.at..self.at + count];
        self.at += count;
        Ok(bytes)
    }

    fn big_endian<const N: usize>(&mut self) -> Read<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.bytes(N)?);
        Ok(bytes)
    }

    fn length8(&mut self) -> Read<usize> {
        Ok(usize::from(u8::from_be_bytes(self.big_endian()?)))
    }

    fn length16(&mut self) -> Read<usize> {
        Ok(usize::from(u16::from_be_bytes(self.big_endian()?)))
    }

    fn length32(&mut self) -> Read<usize> {
        Ok(u32::from_be_bytes(self.big_endian()?) as usize)
    }

    /// How many items follow; nothing is promised about their being there.
    pub fn array(&mut self) -> Read<usize> {
        match self.marker()? {
            Marker::FixArray(count) => Ok(usize::from(count)),
            Marker::Array16 => self.length16(),
            Marker::Array32 => self.length32(),
            _ => Err(Bad),
        }
    }

    /// How many pairs follow.
    pub fn map(&mut self) -> Read<usize> {
        match self.marker()? {
            Marker::FixMap(count) => Ok(usize::from(count)),
            Marker::Map16 => self.length16(),
            Marker::Map32 => self.length32(),
            _ => Err(Bad),
        }
    }

    /// Text that may be no UTF-8.
    pub fn raw_text(&mut self) -> Read<&'a [u8]> {
        let length = match self.marker()? {
            Marker::FixStr(length) => usize::from(length),
            Marker::Str8 => self.length8()?,
            Marker::Str16 => self.length16()?,
            Marker::Str32 => self.length32()?,
            _ => return Err(Bad),
        };
        self.bytes(length)
    }

    pub fn text(&mut self) -> Read<&'a str> {
        std::str::from_utf8(self.raw_text()?).map_err(|_| Bad)
    }

    pub fn binary(&mut self) -> Read<&'a [u8]> {
        let length = match self.marker()? {
            Marker::Bin8 => self.length8()?,
            Marker::Bin16 => self.length16()?,
            Marker::Bin32 => self.length32()?,
            _ => return Err(Bad),
        };
        self.bytes(length)
    }

    /// Any integer on the wire: from −2^63 to 2^64 − 1.
    pub fn integer(&mut self) -> Read<i128> {
        Ok(match self.marker()? {
            Marker::FixPos(value) => i128::from(value),
            Marker::FixNeg(value) => i128::from(value),
            Marker::U8 => i128::from(u8::from_be_bytes(self.big_endian()?)),
            Marker::U16 => i128::from(u16::from_be_bytes(self.big_endian()?)),
            Marker::U32 => i128::from(u32::from_be_bytes(self.big_endian()?)),
            Marker::U64 => i128::from(u64::from_be_bytes(self.big_endian()?)),
            Marker::I8 => i128::from(i8::from_be_bytes(self.big_endian()?)),
            Marker::I16 => i128::from(i16::from_be_bytes(self.big_endian()?)),
            Marker::I32 => i128::from(i32::from_be_bytes(self.big_endian()?)),
            Marker::I64 => i128::from(i64::from_be_bytes(self.big_endian()?)),
            _ => return Err(Bad),
        })
    }

    /// An integer of nine bytes: what nearly every hash is.
    pub fn unsigned_64(&mut self) -> Read<u64> {
        match self.marker()? {
            Marker::U64 => Ok(u64::from_be_bytes(self.big_endian()?)),
            _ => Err(Bad),
        }
    }

    pub fn float(&mut self) -> Read<f64> {
        match self.marker()? {
            Marker::F32 => Ok(f64::from(f32::from_be_bytes(self.big_endian()?))),
            Marker::F64 => Ok(f64::from_be_bytes(self.big_endian()?)),
            _ => Err(Bad),
        }
    }

    /// Whether a nil stands here; it is read if so.
    pub fn nil(&mut self) -> Read<bool> {
        let is_nil = self.peek()? == Marker::Null;
        self.at += usize::from(is_nil);
        Ok(is_nil)
    }

    /// Nil, or what `read` reads.
    pub fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<Option<T>> {
        if self.nil()? { Ok(None) } else { read(self).map(Some) }
    }

    /// A list of integers. What fits into 32 bits goes to the end of `out`, the rest is counted.
    /// Returns (how many there are, how many of them do not fit).
    pub fn u32_list(&mut self, out: &mut Vec<u32>) -> Read<(usize, usize)> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("bmi2") {
            // SAFETY: the processor has what it is compiled for.
            return unsafe { self.u32_list_with_bmi2(out) };
        }
        self.u32_list_anywhere(out)
    }

    /// The same code, with shifts by any register.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "bmi1,bmi2")]
    fn u32_list_with_bmi2(&mut self, out: &mut Vec<u32>) -> Read<(usize, usize)> {
        self.u32_list_anywhere(out)
    }

    #[inline(always)]
    fn u32_list_anywhere(&mut self, out: &mut Vec<u32>) -> Read<(usize, usize)> {
        let count = self.array()?;
        if count > self.left() {
            return Err(Bad);
        }
        let start = out.len();
        out.resize(start + count, 0);
        let (mut read, mut unfit) = (0, 0);
        while read < count {
            // Many at once, then one by one while eight bytes can be loaded.
            while let Some(places) =
                out[start + read - unfit..start + count - unfit].first_chunk_mut()
                && let Some(window) = self.data[self.at..].first_chunk()
                && let Some(bytes) = small_numbers(window, places)
            {
                self.at += bytes;
                read += WINDOW_TOKENS;
            }
            for place in &mut out[start + read - unfit..start + count - unfit] {
                let Some(word) = self.data[self.at..].first_chunk::<8>() else { break };
                let Some((value, bytes)) = small_number(*word) else { break };
                *place = value;
                self.at += bytes;
                read += 1;
            }
            if read < count {
                match u32::try_from(self.integer()?) {
                    Ok(value) => out[start + read - unfit] = value,
                    Err(_) => unfit += 1,
                }
                read += 1;
            }
        }
        out.truncate(start + count - unfit);
        Ok((count, unfit))
    }

    /// Past one value, however deep: with a counter, not by recursion. As much as a payload needs
    /// to be cut into events.
    pub fn skip(&mut self) -> Read<()> {
        let mut values: usize = 1;
        while values > 0 {
            values -= 1;
            values += self.skip_head()?;
            if values > self.left() {
                return Err(Bad);
            }
        }
        Ok(())
    }

    /// Past one value but for the values within it; returns how many those are.
    fn skip_head(&mut self) -> Read<usize> {
        let fixed = match self.marker()? {
            Marker::FixPos(_) | Marker::FixNeg(_) => 0,
            Marker::Null | Marker::True | Marker::False => 0,
            Marker::U8 | Marker::I8 => 1,
            Marker::U16 | Marker::I16 => 2,
            Marker::U32 | Marker::I32 | Marker::F32 => 4,
            Marker::U64 | Marker::I64 | Marker::F64 => 8,
            Marker::FixExt1 => 2,
            Marker::FixExt2 => 3,
            Marker::FixExt4 => 5,
            Marker::FixExt8 => 9,
            Marker::FixExt16 => 17,
            Marker::FixStr(length) => usize::from(length),
            Marker::Str8 | Marker::Bin8 => self.length8()?,
            Marker::Str16 | Marker::Bin16 => self.length16()?,
            Marker::Str32 | Marker::Bin32 => self.length32()?,
            Marker::Ext8 => self.length8()? + 1,
            Marker::Ext16 => self.length16()? + 1,
            Marker::Ext32 => self.length32()?.checked_add(1).ok_or(Bad)?,
            Marker::FixArray(count) => return Ok(usize::from(count)),
            Marker::Array16 => return self.length16(),
            Marker::Array32 => return self.length32(),
            Marker::FixMap(count) => return Ok(2 * usize::from(count)),
            Marker::Map16 => return Ok(2 * self.length16()?),
            Marker::Map32 => return self.length32()?.checked_mul(2).ok_or(Bad),
            Marker::Reserved => return Err(Bad),
        };
        self.bytes(fixed)?;
        Ok(0)
    }

    /// Past one value that nests no deeper than `MAX_NESTING`, looked at as `check` says.
    pub fn pass(&mut self, check: Check) -> Read<()> {
        self.pass_nested(check, MAX_NESTING)
    }

    fn pass_nested(&mut self, check: Check, nesting: u32) -> Read<()> {
        let marker = self.peek()?;
        match marker {
            Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => {
                let inner = nesting.checked_sub(1).ok_or(Bad)?;
                for _ in 0..self.array()? {
                    self.pass_nested(check, inner)?;
                }
                Ok(())
            }
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => {
                let inner = nesting.checked_sub(1).ok_or(Bad)?;
                let in_key = match check {
                    Check::Extent => Check::Extent,
                    Check::Value => Check::Key,
                    Check::Key => return Err(Bad),
                };
                for _ in 0..self.map()? {
                    self.pass_nested(in_key, inner)?;
                    self.pass_nested(check, inner)?;
                }
                Ok(())
            }
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                if check == Check::Extent {
                    self.raw_text().map(|_| ())
                } else {
                    self.text().map(|_| ())
                }
            }
            Marker::FixExt1
            | Marker::FixExt2
            | Marker::FixExt4
            | Marker::FixExt8
            | Marker::FixExt16
            | Marker::Ext8
            | Marker::Ext16
            | Marker::Ext32 => self.extension(check),
            _ => self.skip(),
        }
    }

    /// Past an extension. Type −1 is a time, which must be one; no other can be a map's key.
    fn extension(&mut self, check: Check) -> Read<()> {
        let length = match self.marker()? {
            Marker::FixExt1 => 1,
            Marker::FixExt2 => 2,
            Marker::FixExt4 => 4,
            Marker::FixExt8 => 8,
            Marker::FixExt16 => 16,
            Marker::Ext8 => self.length8()?,
            Marker::Ext16 => self.length16()?,
            _ => self.length32()?,
        };
        let kind = i8::from_be_bytes(self.big_endian()?);
        let data = self.bytes(length)?;
        match (check, kind) {
            (Check::Extent, _) => Ok(()),
            (_, -1) => is_time(data).then_some(()).ok_or(Bad),
            (Check::Value, _) => Ok(()),
            (Check::Key, _) => Err(Bad),
        }
    }
}

/// Whether this is a MessagePack time stamp of the years 1 to 9999.
fn is_time(data: &[u8]) -> bool {
    let (seconds, nanoseconds) = match *data {
        [a, b, c, d] => (i64::from(u32::from_be_bytes([a, b, c, d])), 0),
        [a, b, c, d, e, f, g, h] => {
            let both = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            ((both & 0x3_ffff_ffff) as i64, (both >> 34) as u32)
        }
        [a, b, c, d, e, f, g, h, i, j, k, l] => {
            (i64::from_be_bytes([e, f, g, h, i, j, k, l]), u32::from_be_bytes([a, b, c, d]))
        }
        _ => return false,
    };
    nanoseconds <= 999_999_999 && (-62_135_596_800..=253_402_300_800).contains(&seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_its_integers_one_by_one() {
        let mut state = 5u64;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        for round in 0..3000 {
            let count = draw(200) as u16;
            // Nearly all of it small numbers, or hardly anything.
            let foreign = if round % 2 == 0 { 400 } else { 4 };
            let mut list = [&[0xdc], &count.to_be_bytes()[..]].concat();
            for _ in 0..count {
                let value = draw(1 << 31) * 2 + 1;
                match draw(4) {
                    0 => list.push(value as u8 & 0x7f),
                    1 => list.extend([0xcc, value as u8]),
                    2 => list.extend([&[0xcd], &(value as u16).to_be_bytes()[..]].concat()),
                    _ if draw(foreign) > 0 => {
                        list.extend([&[0xce], &(value as u32).to_be_bytes()[..]].concat());
                    }
                    _ => match draw(4) {
                        0 => list.extend([&[0xcf], &value.to_be_bytes()[..]].concat()),
                        1 => list.extend([0xd0, value as u8]),
                        2 => list.push(0xff),
                        _ => list.push(0xc0),
                    },
                }
            }
            if round % 7 == 0 {
                list.truncate(draw(list.len() as u64 + 1) as usize);
            }
            let mut expected = Vec::new();
            let mut single = Reader::new(&list);
            let one_by_one = single.array().and_then(|count| {
                for _ in 0..count {
                    expected.extend(u32::try_from(single.integer()?));
                }
                Ok((count, count - expected.len()))
            });
            let (mut reader, mut found) = (Reader::new(&list), Vec::new());
            let read = reader.u32_list(&mut found);
            assert_eq!(read, one_by_one);
            if read.is_ok() {
                assert_eq!((found, reader.at()), (expected, single.at()));
            }
        }
    }
}
