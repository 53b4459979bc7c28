//! Names of engines' hashes: 64 bits each, whatever the engine's own are.
//!
//! Contract: equal hashes have equal names. An integer from 0 to 2^64 − 1 is its own name, so
//! two of them never share one. Negative integers and byte strings are hashed with a secret seed,
//! as in `aibrix_extproc/index/names.py`: that two hashes of one source then share a name is as
//! likely as that two block keys collide (one in 2^64 per pair), and nobody outside can bring it
//! about. A source takes the seed of its names along where it is exported. Places in tables hang
//! on another one, which never leaves this process.
//!
//! Why: a table of 16-byte entries is what keeps a placement under 40 bytes; keeping 32-byte
//! hashes whole would double it.

use std::hash::{BuildHasher, RandomState};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// 2^64 divided by the golden ratio: odd, with its bits well spread.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Makes names, and places in tables that nobody outside can foresee.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Of places in tables.
    seed: u64,
    /// Of names.
    naming: u64,
}

impl Names {
    pub fn new() -> Self {
        let random = RandomState::new();
        Names { seed: random.hash_one(0u64), naming: random.hash_one(1u64) }
    }

    /// The same tables, with names by another seed.
    pub fn with_naming(self, naming: u64) -> Self {
        Names { naming, ..self }
    }

    /// The seed of names.
    pub fn naming(&self) -> u64 {
        self.naming
    }

    pub fn of_integer(&self, value: i128) -> u64 {
        match u64::try_from(value) {
            Ok(name) => name,
            Err(_) => xxh3_64_with_seed(&value.to_le_bytes(), self.naming),
        }
    }

    pub fn of_bytes(&self, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, !self.naming)
    }

    /// A name's 64 bits, mixed so that the highest are well spread; different names stay different.
    #[inline]
    pub fn spread(&self, name: u64) -> u64 {
        (name ^ self.seed).wrapping_mul(GOLDEN)
    }

    /// The name whose bits are spread to these.
    #[cfg(test)]
    pub fn of_spread(&self, spread: u64) -> u64 {
        // Each step doubles the bits that are right.
        let mut inverse = GOLDEN;
        for _ in 0..5 {
            inverse = inverse.wrapping_mul(2u64.wrapping_sub(GOLDEN.wrapping_mul(inverse)));
        }
        spread.wrapping_mul(inverse) ^ self.seed
    }

    /// 64 well-mixed bits of a key or name, different in every process.
    #[inline]
    pub fn mix(&self, value: u64) -> u64 {
        let product = u128::from(value ^ self.seed) * u128::from(GOLDEN);
        (product as u64) ^ ((product >> 64) as u64)
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::new()
    }
}
