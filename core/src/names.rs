//! Names of engines' hashes: 64 bits each, whatever the engine's own are.
//!
//! Contract: equal hashes have equal names. An integer from 0 to 2^64 − 1 is its own name, so
//! two of them never share one. Negative integers and byte strings are hashed with a seed drawn
//! for this process: that two hashes of one source then share a name is as likely as that two
//! block keys collide (one in 2^64 per pair), and nobody outside can bring it about.
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
    seed: u64,
}

impl Names {
    pub fn new() -> Self {
        Names { seed: RandomState::new().hash_one(0u64) }
    }

    pub fn of_integer(&self, value: i128) -> u64 {
        match u64::try_from(value) {
            Ok(name) => name,
            Err(_) => xxh3_64_with_seed(&value.to_le_bytes(), self.seed),
        }
    }

    pub fn of_bytes(&self, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, !self.seed)
    }

    /// A name's 64 bits, mixed so that the highest are well spread, and never 0. Different names
    /// stay different, but for one secret name that shares with its neighbour.
    #[inline]
    pub fn keep(&self, name: u64) -> u64 {
        (name ^ self.seed).wrapping_mul(GOLDEN).max(1)
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
