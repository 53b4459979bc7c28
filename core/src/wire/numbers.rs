//! Lists of numbers below 2^32: a batch's tokens, where its time goes.
//!
//! Contract: what `Reader::integer` reads one by one, many at once. Numbers of other sizes, and
//! what is no number, are left to it.
//!
//! Shape: as long as twelve numbers and 64 bytes are left, a window of them; then one number per
//! eight bytes; then the cursor. There is no branch per token: ids below and above 65,536 take
//! turns at random, and a wrongly guessed branch costs more than the whole token.

use super::{Bad, Read, Reader};
use std::hint::select_unpredictable;

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

impl Reader<'_> {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number below 2^32 of one of its sizes or, one time in four times `foreign`, anything else.
    fn push(list: &mut Vec<u8>, foreign: u64, draw: &mut impl FnMut(u64) -> u64) {
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
                push(&mut list, foreign, &mut draw);
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
