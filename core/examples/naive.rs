//! The naive floor of the ingest benchmark: the same bytes, decoded and hashed by the same code,
//! into two maps of the standard library. No copies, orphans, media, groups, removals, readers or
//! Python: what is left when everything is left out that makes an index.
//!
//!     cargo run --release --example naive -- FILE BLOCKS

use aibrix_core::events::{self, Event, Lists};
use aibrix_core::keys::{self, Adapter};
use aibrix_core::names::Names;
use std::collections::HashMap;
use std::time::Instant;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let file = std::fs::read(&arguments[1]).expect("a file of messages");
    let blocks: f64 = arguments[2].parse().expect("a number of blocks");
    let (names, mut lists) = (Names::new(), Lists::default());
    let mut decoded = 0;
    let start = Instant::now();
    each(&file, |_, payload| {
        decoded += events::decode(payload, &names, &mut lists).events.len();
        lists.clear();
    });
    let decode = start.elapsed().as_secs_f64();
    let mut meanings: HashMap<(u32, u64), u64> = HashMap::new();
    let mut holders: HashMap<u64, Vec<u16>> = HashMap::new();
    let start = Instant::now();
    each(&file, |source, payload| {
        let batch = events::decode(payload, &names, &mut lists);
        for event in &batch.events {
            let Event::Stored(number) = event else { continue };
            let stored = &batch.stored[*number as usize];
            let size = stored.block_size as usize;
            let mut key = match stored.parent {
                Some(parent) => meanings[&(source, parent)],
                None => keys::root(size as u32, Adapter::None),
            };
            let tokens = &lists.tokens[stored.tokens.clone()];
            for (block, &hash) in tokens.chunks(size).zip(&lists.hashes[stored.hashes.clone()]) {
                let bytes: Vec<u8> = block.iter().flat_map(|token| token.to_le_bytes()).collect();
                key = keys::plain(key, &bytes);
                meanings.insert((source, hash), key);
                holders.entry(key).or_default().push(source as u16);
            }
        }
        lists.clear();
    });
    let all = start.elapsed().as_secs_f64();
    assert!(decoded > 0 && meanings.len() as f64 == blocks);
    println!(
        r#"{{"decode alone": {:.1}, "all": {:.1}}}"#,
        decode / blocks * 1e9,
        all / blocks * 1e9
    );
}

/// Source, length, payload; one after another.
fn each(file: &[u8], mut work: impl FnMut(u32, &[u8])) {
    let number = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes"));
    let mut at = 0;
    while at < file.len() {
        let (source, length) = (number(at), number(at + 4) as usize);
        work(source, &file[at + 8..at + 8 + length]);
        at += 8 + length;
    }
}
