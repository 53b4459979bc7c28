//! BlockStored: what an event says of its blocks, and where they go.
//!
//! Contract: an event whose lengths do not fit is a misfit, and extras that have no place in a key
//! make it unreadable; neither places a block. Of an event that is understood each block is placed
//! under the one before it, or parked where that one is not believed. Knows no other kind of event.

use super::{Application, Overtaken, Scratch, Step};
use crate::events::Stored;
use crate::keys::{self, Adapter, TOKEN_BYTES};
use crate::orphans::{At, Parked};
use crate::reasons::Reason;
use crate::state::GPU;
use crate::wire::Reader;
use std::ops::Range;

/// Consecutive blocks of one prompt, understood as far as their event alone tells.
struct Blocks<'a> {
    hashes: &'a [u64],
    tokens: &'a [u8],
    block_bytes: usize,
    /// Encoded, one after another.
    extras: Vec<u8>,
    /// Of each block; empty where no block has any.
    extras_of: Vec<Range<usize>>,
}

impl Blocks<'_> {
    fn block_tokens(&self) -> u64 {
        (self.block_bytes / TOKEN_BYTES) as u64
    }

    fn content(&self, number: usize) -> (&[u8], &[u8]) {
        let start = number * self.block_bytes;
        let extras = self.extras_of.get(number).map_or(&[][..], |of| &self.extras[of.clone()]);
        (&self.tokens[start..start + self.block_bytes], extras)
    }

    fn key(&self, parent: u64, number: usize) -> u64 {
        let (tokens, extras) = self.content(number);
        keys::block(parent, tokens, extras)
    }
}

impl<'a> Application<'a> {
    pub(super) fn store(&mut self, event: &Stored, number: u32) -> Step {
        let indexed = self.present.state.learn_kind(event.group, event.kind);
        self.present.state.learn_lookahead(event.lookahead as u64);
        let Some(block_size) = fitting_block_size(event) else { return self.skip(Reason::Misfit) };
        let adapter = self.adapter(event);
        let Some(blocks) = self.understand(event, block_size, adapter) else {
            return self.skip(Reason::UnreadableStored);
        };
        if blocks.hashes.is_empty() {
            return Ok(());
        }
        if matches!(adapter, Adapter::Nameless(_)) {
            self.skip(Reason::UnnamedAdapter)?;
        }
        let medium = event.medium.unwrap_or(GPU);
        let shelf = if indexed { self.present.state.shelf_for(medium, event.group) } else { None };
        let Some(shelf) = shelf else { return self.skip(Reason::GroupNotIndexed) };
        let key = match event.parent {
            None => Some(keys::root(block_size, adapter)),
            Some(parent) => self.present.state.meaning(parent),
        };
        if let Some(key) = key {
            let Scratch { keys, now, .. } = &mut *self.scratch;
            now.take(number, key, keys);
        }
        self.store_blocks(shelf, &blocks, event.parent, key)?;
        for reason in [Reason::Conflict, Reason::Full] {
            if std::mem::take(&mut self.refusals[reason as usize]) {
                self.skip(reason)?;
            }
        }
        Ok(())
    }

    pub(super) fn adapter<'e>(&self, event: &Stored<'e>) -> Adapter<'e>
    where
        'a: 'e,
    {
        match (event.lora_name, event.lora_id, &self.source.lora_name) {
            (Some(name), _, _) => Adapter::Named(name.as_bytes()),
            (None, None, _) => Adapter::None,
            (None, id, Some(name)) if id == self.source.lora_id => Adapter::Named(name),
            (None, Some(id), _) => Adapter::Nameless(id),
        }
    }

    /// The blocks of an event whose lengths fit; None where extras have no place in a key.
    fn understand(&self, event: &Stored, block_size: u32, adapter: Adapter) -> Option<Blocks<'a>> {
        let hashes = &self.lists.hashes[event.hashes.clone()];
        let mut blocks = Blocks {
            hashes,
            tokens: bytes_of(&self.lists.tokens[event.tokens.clone()]),
            block_bytes: block_size as usize * TOKEN_BYTES,
            extras: Vec::new(),
            extras_of: Vec::new(),
        };
        let Some(extra_keys) = event.extras else {
            // SGLang's salt counts for block 0, as a request's does.
            if event.parent.is_none() && !hashes.is_empty() {
                blocks.extras = keys::encode_salt(event.salt.unwrap_or("").as_bytes());
                if !blocks.extras.is_empty() {
                    blocks.extras_of.push(0..blocks.extras.len());
                }
            }
            return Some(blocks);
        };
        if extra_keys.any {
            let name = if let Adapter::Named(name) = adapter { Some(name) } else { None };
            let mut lists = Reader::new(extra_keys.lists);
            for _ in 0..extra_keys.count {
                let start = blocks.extras.len();
                if !lists.nil().ok()? {
                    keys::encode_extras(&mut lists, name, &mut blocks.extras).ok()?;
                }
                blocks.extras_of.push(start..blocks.extras.len());
            }
        }
        Some(blocks)
    }

    /// Place the blocks one after another; park those whose parent is unknown.
    fn store_blocks(
        &mut self,
        shelf: usize,
        blocks: &Blocks,
        parent: Option<u64>,
        key: Option<u64>,
    ) -> Step {
        let (mut key, mut parent) = (key, parent.unwrap_or(0));
        for (number, &name) in blocks.hashes.iter().enumerate() {
            if let Some(before) = key {
                key = self.store_block((shelf, name), blocks, before, number)?;
            } else {
                let (tokens, extras) = blocks.content(number);
                self.park(Parked {
                    at: (shelf, name),
                    parent,
                    tokens: tokens.into(),
                    extras: extras.into(),
                    copies: 1,
                })?;
                self.scratch.keys.clear();
                key = self.present.state.meaning(name);
            }
            parent = name;
        }
        self.scratch.keys.clear();
        Ok(())
    }

    /// Place a block behind the key of its parent, and all that waits for it. Returns its own key,
    /// or None where its hash is not believed.
    #[inline(always)]
    fn store_block(
        &mut self,
        (shelf, name): At,
        blocks: &Blocks,
        before: u64,
        number: usize,
    ) -> Result<Option<u64>, Overtaken> {
        let own = self.chained(shelf, blocks, before, number);
        match self.present.state.place(shelf, name, own, &self.pin) {
            Ok(()) => {
                self.applied.stored += 1;
                self.present.state.note_block_size(shelf, blocks.block_tokens());
                let is_awaited = self.present.state.orphans.awaits(name);
                self.spend(1)?;
                if !is_awaited {
                    return Ok(Some(own));
                }
                self.join_children_of(name)?;
            }
            Err(reason) => {
                self.refusals[reason as usize] = true;
                self.spend(1)?;
            }
        }
        Ok(self.present.state.meaning(name).map(|_| own))
    }

    /// The key of a block. Those of some blocks behind it are made at the same time, so that the
    /// memory they will need is on its way.
    fn chained(&mut self, shelf: usize, blocks: &Blocks, before: u64, number: usize) -> u64 {
        if self.scratch.keys.is_empty() {
            const AHEAD: usize = 16;
            let end = blocks.hashes.len().min(number + AHEAD);
            let mut key = before;
            for next in number..end {
                key = blocks.key(key, next);
                self.present.state.prefetch_key(key, &self.pin);
                self.present.state.prefetch_name(shelf, blocks.hashes[next]);
                self.scratch.keys.push(key);
            }
            self.scratch.keys.reverse();
        }
        self.scratch.keys.pop().unwrap_or_else(|| blocks.key(before, number))
    }
}

/// Tokens per block, where an event's tokens are exactly those of its blocks. Engines send other
/// events for offload placeholders and masked groups.
pub(super) fn fitting_block_size(event: &Stored) -> Option<u32> {
    let blocks = event.hashes.len();
    let size = usize::try_from(event.block_size).ok().filter(|&size| size > 0)?;
    if size.checked_mul(blocks) != Some(event.token_count)
        || event.tokens.len() != event.token_count
        || event.extras.is_some_and(|extras| extras.count != blocks)
    {
        return None;
    }
    // Without blocks any size fits, and none is used.
    Some(u32::try_from(size).unwrap_or(u32::MAX))
}

/// Tokens as they are hashed: four bytes each, little-endian.
pub(super) fn bytes_of(tokens: &[u32]) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "keys are made of little-endian tokens") };
    // SAFETY: every bit pattern is a u8, and the slice covers the same memory.
    unsafe { std::slice::from_raw_parts(tokens.as_ptr().cast(), size_of_val(tokens)) }
}
