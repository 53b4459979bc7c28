//! The index: sources, their events, and how deep a prompt is held in each.
//!
//! Contract: `aibrix_extproc.index.reference.PrefixIndex`, without Python's types. Safe from any
//! thread. Payloads of one source must come in order, from one thread at a time; different
//! sources never wait for one another, and readers wait for nobody.

use crate::apply::{Application, Applied, Scratch};
use crate::events::{self, Lists};
use crate::keys::{self, Adapter};
use crate::lookup::{Question, Walk};
use crate::model::{Model, Usage};
use crate::names::Names;
use crate::snapshot::{self, Refused};
use crate::source::{Present, Source};
use crate::state::{GPU, State};
use parking_lot::{Mutex, RwLock};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// No source has this number.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownSource;

/// Why an import came to nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum NotImported {
    UnknownSource,
    Refused(Refused),
}

/// The size of the index at one moment.
#[derive(Default, Debug)]
pub struct Stats {
    pub blocks: u64,
    pub placements: u64,
    pub orphans: u64,
    pub bytes: u64,
    pub by_medium: BTreeMap<String, u64>,
    pub full_sources: Vec<u64>,
    /// Every source, and its placements on the GPU.
    pub per_source: Vec<(u64, u64)>,
}

struct KnownModel {
    model: Arc<Model>,
    sources: usize,
}

/// See the module.
pub struct Index {
    names: Names,
    usage: Arc<Usage>,
    max_orphans: usize,
    models: RwLock<HashMap<Box<[u8]>, KnownModel>>,
    sources: RwLock<HashMap<u64, Arc<Source>>>,
    next_source: AtomicU64,
}

thread_local! {
    static BUFFERS: RefCell<(Lists, Scratch)> = RefCell::default();
    static WALK: RefCell<Walk> = RefCell::default();
}

impl Index {
    /// `max_bytes` 0 means no limit; `max_orphans` is in parked blocks per source.
    pub fn new(max_bytes: u64, max_orphans: usize) -> Self {
        let limit_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
        Index {
            names: Names::new(),
            usage: Arc::new(Usage { limit_bytes, ..Usage::default() }),
            max_orphans,
            models: RwLock::default(),
            sources: RwLock::default(),
            next_source: AtomicU64::new(0),
        }
    }

    pub fn add_source(&self, model: &[u8], lora_id: Option<i128>, lora_name: Option<&[u8]>) -> u64 {
        let number = self.next_source.fetch_add(1, Ordering::Relaxed);
        let of_source = {
            let mut models = self.models.write();
            let known = models.entry(model.into()).or_insert_with(|| KnownModel {
                model: Arc::new(Model::new(self.usage.clone(), self.names)),
                sources: 0,
            });
            known.sources += 1;
            known.model.clone()
        };
        let source = Source {
            model: model.into(),
            lora_id,
            lora_name: lora_name.map(Into::into),
            naming: AtomicU64::new(self.names.naming()),
            present: Mutex::new(Present {
                state: State::new(number, of_source, self.names),
                replaced: 0,
                removed: false,
            }),
        };
        self.sources.write().insert(number, Arc::new(source));
        number
    }

    fn source(&self, number: u64) -> Result<Arc<Source>, UnknownSource> {
        self.sources.read().get(&number).cloned().ok_or(UnknownSource)
    }

    /// It is in no answer from the first moment on; then its blocks are taken out.
    pub fn remove_source(&self, number: u64) -> Result<(), UnknownSource> {
        let source = self.sources.write().remove(&number).ok_or(UnknownSource)?;
        source.empty(true);
        let mut models = self.models.write();
        if let Some(known) = models.get_mut(&source.model) {
            known.sources -= 1;
            if known.sources == 0 {
                models.remove(&source.model);
            }
        }
        Ok(())
    }

    pub fn clear_source(&self, number: u64) -> Result<(), UnknownSource> {
        self.source(number)?.empty(false);
        Ok(())
    }

    /// Apply one msgpack EventBatch. No bytes are an error.
    pub fn apply(&self, number: u64, payload: &[u8]) -> Result<Applied, UnknownSource> {
        let source = self.source(number)?;
        Ok(BUFFERS.with_borrow_mut(|(lists, scratch)| {
            let names = self.names.with_naming(source.naming.load(Ordering::Relaxed));
            let batch = events::decode(payload, &names, lists);
            let applied = Application::run(&source, &batch, lists, scratch, self.max_orphans);
            lists.clear();
            applied
        }))
    }

    /// All that `apply` needs of a source to go on elsewhere. Call it between two batches.
    pub fn export_source(&self, number: u64, orphans: bool) -> Result<Vec<u8>, UnknownSource> {
        Ok(snapshot::export(&*self.source(number)?, orphans))
    }

    /// Make a source that was just added hold what an exported one did; see `snapshot`.
    pub fn import_source(&self, number: u64, data: &[u8]) -> Result<(), NotImported> {
        let source = self.source(number).map_err(|UnknownSource| NotImported::UnknownSource)?;
        snapshot::decode(data)
            .and_then(|saved| snapshot::import(&source, &saved, self.max_orphans))
            .map_err(NotImported::Refused)
    }

    /// Tokens per block of the last GPU block placed.
    pub fn block_size(&self, number: u64) -> Result<Option<u64>, UnknownSource> {
        Ok(self.source(number)?.present.lock().state.block_size())
    }

    /// Append (source, depth) for each source of the model that holds any of the prompt.
    /// `tokens` are little-endian, four bytes each.
    pub fn matches(
        &self,
        model: &[u8],
        tokens: &[u8],
        lora: Option<&[u8]>,
        salt: Option<&[u8]>,
        out: &mut Vec<(u64, u64)>,
    ) {
        let Some(model) = self.models.read().get(model).map(|known| known.model.clone()) else {
            return;
        };
        let extras = salt.map_or_else(Vec::new, keys::encode_salt);
        let pin = &crossbeam_epoch::pin();
        for &block_size in model.sizes().iter() {
            let Ok(size) = u32::try_from(block_size) else { continue };
            let question = Question {
                tokens,
                block_size,
                root: keys::root(size, lora.map_or(Adapter::None, Adapter::Named)),
                extras: &extras,
            };
            WALK.with_borrow_mut(|walk| {
                walk.depths(&model, &question, pin, out, |source, work| {
                    if let Ok(source) = self.source(source) {
                        let _held = source.present.lock();
                        work();
                    }
                });
            });
        }
    }

    pub fn stats(&self) -> Stats {
        let sources: BTreeMap<u64, Arc<Source>> =
            self.sources.read().iter().map(|(number, source)| (*number, source.clone())).collect();
        let mut stats = Stats::default();
        for (number, source) in sources {
            let present = source.present.lock();
            let state = &present.state;
            let mut on_gpu = 0;
            for shelf in &state.shelves {
                stats.placements += shelf.placements;
                on_gpu += if *shelf.medium == *GPU { shelf.placements } else { 0 };
                if shelf.placements > 0 {
                    *stats.by_medium.entry(shelf.medium.to_string()).or_default() +=
                        shelf.placements;
                }
            }
            stats.orphans += state.orphans.len() as u64;
            stats.per_source.push((number, on_gpu));
            if state.full {
                stats.full_sources.push(number);
            }
        }
        stats.blocks = self.usage.blocks.load(Ordering::Relaxed).max(0) as u64;
        stats.bytes = self.usage.bytes.load(Ordering::Relaxed).max(0) as u64;
        stats
    }
}

/// The keys of all full blocks of a prompt.
pub fn block_keys(
    tokens: &[u8],
    block_size: u32,
    lora: Option<&[u8]>,
    salt: Option<&[u8]>,
) -> Vec<u64> {
    let mut key = keys::root(block_size, lora.map_or(Adapter::None, Adapter::Named));
    let mut extras = salt.map_or_else(Vec::new, keys::encode_salt);
    let mut keys = Vec::with_capacity(tokens.len() / keys::TOKEN_BYTES / block_size as usize);
    for block in tokens.chunks_exact(block_size as usize * keys::TOKEN_BYTES) {
        key = keys::block(key, block, &extras);
        extras.clear();
        keys.push(key);
    }
    keys
}
