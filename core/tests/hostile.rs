//! Hostile bytes: seeded damage to payloads of every kind, against `apply`, and to exports of
//! sources, against `import_source`.
//!
//! No bytes may panic, allocate more than a fixed multiple of their own size, reach another
//! source, or leave anything behind a clear. A moment by default; `AIBRIX_FUZZ_SECONDS` for longer,
//! with another seed each time, which is printed. `AIBRIX_FUZZ_SEED` repeats one.

use aibrix_core::index::{Index, NotImported};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use xxhash_rust::xxh3::xxh3_64;

/// Counts what this thread allocates.
struct Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATED.try_with(|all| all.set(all.get() + layout.size()));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A small generator (splitmix64): the same histories on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// MessagePack, written by hand.
#[derive(Clone)]
enum Value {
    Nil,
    Int(u64),
    Text(&'static str),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Map(Vec<(&'static str, Value)>),
}

use Value::{Bytes, Int, List, Map, Nil, Text};

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Nil => out.push(0xc0),
        Int(n) if *n < 128 => out.push(*n as u8),
        Int(n) => {
            out.push(0xcf);
            out.extend_from_slice(&n.to_be_bytes());
        }
        Text(text) => {
            out.push(0xd9);
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
        Bytes(bytes) => {
            out.push(0xc4);
            out.push(bytes.len() as u8);
            out.extend_from_slice(bytes);
        }
        List(items) => {
            out.push(0xdc);
            out.extend_from_slice(&(items.len() as u16).to_be_bytes());
            items.iter().for_each(|item| write(item, out));
        }
        Map(pairs) => {
            out.push(0xde);
            out.extend_from_slice(&(pairs.len() as u16).to_be_bytes());
            for (name, item) in pairs {
                write(&Text(name), out);
                write(item, out);
            }
        }
    }
}

const STORED: [&str; 13] = [
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "locality",
    "lookahead_token_ids",
    "cache_salt",
];

fn one_of<T: Clone>(random: &mut Random, all: &[T]) -> T {
    all[random.below(all.len())].clone()
}

fn hash(random: &mut Random) -> Value {
    let number = random.below(12) as u64;
    if number == 0 { Bytes(vec![7; 32]) } else { Int(number) }
}

fn stored(random: &mut Random) -> Value {
    let (blocks, size) = (random.below(5), 1 + random.below(4));
    let hashes = (0..blocks).map(|_| hash(random)).collect();
    let tokens = (0..blocks * size).map(|_| Int(random.below(3) as u64)).collect();
    let keys = one_of(
        random,
        &[
            Nil,
            List(vec![Nil; blocks]),
            List(vec![List(vec![Text("ad"), Text("salt"), Int(1 << 40)]); blocks]),
        ],
    );
    let values = [
        List(hashes),
        if random.below(2) == 0 { Nil } else { hash(random) },
        List(tokens),
        Int(size as u64),
        one_of(random, &[Nil, Nil, Int(1)]),
        one_of(random, &[Nil, Text("GPU"), Text("CPU")]),
        one_of(random, &[Nil, Nil, Text("ad")]),
        keys,
        one_of(random, &[Nil, Int(0), Int(1), Int(99)]),
        one_of(random, &[Nil, Text("full_attention"), Text("sliding_window")]),
        Nil,
        one_of(random, &[Nil, Nil, List(vec![List(vec![Int(1); 3])])]),
        one_of(random, &[Nil, Nil, Text("salt")]),
    ];
    if random.below(3) == 0 {
        let fields = std::iter::once(Text("BlockStored")).chain(values.into_iter().take(10));
        return List(fields.collect());
    }
    let tag = std::iter::once(("type", Text("BlockStored")));
    Map(tag.chain(STORED.into_iter().zip(values)).collect())
}

fn event(random: &mut Random) -> Value {
    match random.below(8) {
        0 => List(vec![Text("BlockRemoved"), List(vec![hash(random), hash(random)])]),
        1 => Map(vec![
            ("type", Text("BlockRemoved")),
            ("block_hashes", List(vec![hash(random); 3])),
            ("medium", one_of(random, &[Nil, Text("CPU")])),
        ]),
        2 if random.below(4) == 0 => Map(vec![("type", Text("AllBlocksCleared"))]),
        _ => stored(random),
    }
}

fn payload(random: &mut Random) -> Vec<u8> {
    let events = (0..random.below(5)).map(|_| event(random)).collect();
    let mut out = Vec::new();
    write(&List(vec![Int(5), List(events), Int(0)]), &mut out);
    for _ in 0..random.below(4) {
        let at = random.below(out.len());
        match random.below(5) {
            0 => out[at] = random.next() as u8,
            1 => out[at] ^= 1 << random.below(8),
            2 => out.insert(at, random.next() as u8),
            3 => drop(out.drain(at..(at + 1 + random.below(9)).min(out.len()))),
            // Headers that promise much: lists, maps, text and bytes of billions.
            _ => {
                let header = [one_of(random, &[0xdd, 0xdf, 0xdb, 0xc6, 0xc9, 0x91]); 1];
                out.splice(at..at, header.into_iter().chain([0xff; 4]));
            }
        }
        if out.is_empty() {
            break;
        }
    }
    out
}

/// What one payload may allocate: a base for tables that grow, and so much for each byte. Growing
/// a table writes it anew, so one small payload can cost the table that it makes too full.
fn allowance(payload: &[u8]) -> usize {
    256 * 1024 + 200 * payload.len()
}

/// A generator and when to end: at once, but for as long as AIBRIX_FUZZ_SECONDS says.
fn begin() -> (Random, Instant) {
    let seconds: Option<u64> =
        std::env::var("AIBRIX_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let fresh = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64);
    let seed = match std::env::var("AIBRIX_FUZZ_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => seed,
        None if seconds.is_some() => fresh,
        None => 1,
    };
    println!("AIBRIX_FUZZ_SEED={seed}");
    (Random(seed), Instant::now() + Duration::from_secs(seconds.unwrap_or(0)))
}

#[test]
fn no_bytes_panic_or_take_more_than_they_justify() {
    let (mut random, end) = begin();
    let mut payloads = 0u64;
    while payloads < 30_000 || Instant::now() < end {
        payloads += history(&mut random);
    }
    println!("{payloads} payloads");
}

fn history(random: &mut Random) -> u64 {
    const PAYLOADS: u64 = 200;
    let tokens: Vec<u8> = [9u32; 8].iter().flat_map(|token| token.to_le_bytes()).collect();
    let index = Index::new(0, 16);
    let (bystander, source) =
        (index.add_source(b"m", None, None), index.add_source(b"m", Some(1), Some(b"ad")));
    let mut said = Vec::new();
    let whole = Map(vec![
        ("type", Text("BlockStored")),
        ("block_hashes", List(vec![Int(1), Int(2)])),
        ("parent_block_hash", Nil),
        ("token_ids", List(vec![Int(9); 8])),
        ("block_size", Int(4)),
    ]);
    write(&List(vec![Nil, List(vec![whole])]), &mut said);
    assert_eq!(index.apply(bystander, &said).unwrap().stored, 2);
    for _ in 0..PAYLOADS {
        let bytes = payload(random);
        ALLOCATED.set(0);
        let applied = index.apply(source, &bytes).unwrap();
        let allocated = ALLOCATED.get();
        assert!(allocated <= allowance(&bytes), "{allocated} bytes for {bytes:02x?}");
        assert!(applied.stored + applied.parked <= bytes.len() as u64 * 8, "{bytes:02x?}");
        let mut found = Vec::new();
        index.matches(b"m", &tokens, None, None, &mut found);
        assert!(found.contains(&(bystander, 2)), "{bytes:02x?}");
        if random.below(20) == 0 {
            index.clear_source(source).unwrap();
            let stats = index.stats();
            assert_eq!((stats.blocks, stats.placements, stats.orphans), (2, 2, 0));
        }
    }
    index.remove_source(source).unwrap();
    index.remove_source(bystander).unwrap();
    let stats = index.stats();
    assert_eq!((stats.blocks, stats.placements, stats.bytes), (0, 0, 0));
    PAYLOADS
}

/// Damage to an export, sealed again with a right checksum now and then.
fn damaged(random: &mut Random, export: &[u8]) -> Vec<u8> {
    let mut out = export.to_vec();
    let sealed = random.below(8) > 0;
    if sealed {
        out.truncate(out.len() - 8);
    }
    for _ in 0..1 + random.below(3) {
        let at = random.below(out.len());
        match random.below(4) {
            0 => out[at] ^= 1 << random.below(8),
            1 => out[at] = [0, 1, 0x7f, 0xff][random.below(4)],
            2 => out.truncate(at.max(1)),
            // Counts of billions.
            _ => out[at..].iter_mut().take(1 + random.below(8)).for_each(|byte| *byte = 0xff),
        }
    }
    if sealed {
        let checksum = xxh3_64(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
    }
    out
}

#[test]
fn no_export_panics_or_takes_more_than_it_justifies() {
    let (mut random, end) = begin();
    let (mut taken, mut refused) = (0u64, 0u64);
    while taken + refused < 20_000 || Instant::now() < end {
        let index = Index::new(0, 16);
        let source = index.add_source(b"m", None, None);
        for _ in 0..20 {
            index.apply(source, &payload(&mut random)).unwrap();
        }
        let export = index.export_source(source, true).unwrap();
        for _ in 0..100 {
            let bytes = damaged(&mut random, &export);
            let number = index.add_source(b"m", None, None);
            ALLOCATED.set(0);
            match index.import_source(number, &bytes) {
                Ok(()) => taken += 1,
                Err(NotImported::Refused(_)) => refused += 1,
                Err(NotImported::UnknownSource) => panic!("it is there"),
            }
            let allocated = ALLOCATED.get();
            assert!(allocated <= allowance(&bytes), "{allocated} bytes for {bytes:02x?}");
            index.apply(number, &payload(&mut random)).unwrap();
            index.remove_source(number).unwrap();
        }
        assert_eq!(index.export_source(source, true).unwrap(), export);
        index.remove_source(source).unwrap();
        let stats = index.stats();
        assert_eq!((stats.blocks, stats.placements, stats.bytes), (0, 0, 0));
    }
    println!("{taken} exports taken, {refused} refused");
    assert!(taken > 0 && refused > 0);
}
