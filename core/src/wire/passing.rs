//! Past values that are not used, looked at as far as it matters.
//!
//! Contract: `skip` needs no more than an end, however deep the value nests, and counts instead of
//! calling itself. `pass` goes `MAX_NESTING` deep, and tells what could be used from what could
//! not, as the reference's decoder does. Knows nothing of events.

use super::{Bad, Read, Reader};
use rmp::Marker;

/// Lists within lists that a value may hold before it counts as unreadable. The reference's bound
/// is its interpreter's recursion limit, a little under 1,000.
const MAX_NESTING: u32 = 900;

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

impl Reader<'_> {
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
