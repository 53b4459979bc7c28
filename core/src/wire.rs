//! MessagePack, as far as KV events need it: a cursor over bytes that nobody vouches for.
//!
//! Contract: nothing here panics, recurses without a bound, or allocates. A header that promises
//! more than there is ends in `Bad`, as does a value of another type than the one asked for.
//!
//! Shape: `rmp` names the kinds of values; lengths and numbers are read here, by slices that know
//! their end. `rmp::decode` was left out for one reason: it reads one value at a time through a
//! trait, and the list of tokens is where a batch's time goes. That list has a module of its own
//! (`numbers`), as has going past what is not used (`passing`). Knows nothing of events.

mod numbers;
mod passing;

pub use passing::Check;
use rmp::Marker;

/// The bytes are not what was asked for, or end too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bad;

pub type Read<T> = Result<T, Bad>;

/// A cursor. `at` moves only past what was read.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    data: &'a [u8],
    at: usize,
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
}
