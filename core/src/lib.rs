//! The compiled index of aibrix_extproc: KV events in, depths of a prompt out.
//!
//! Read `index` first, then `source` and `apply` (what a payload does to a source), `state` (what a
//! source holds), `model` and `table` (who holds a block), `lookup` (how deep a prompt is held).
//! `wire` and `events` read payloads, `keys` and `names` say what blocks are called. `python` alone
//! knows Python. Nothing here knows HTTP, ZMQ or a policy.

pub mod apply;
mod entries;
pub mod events;
pub mod index;
pub mod keys;
mod lookup;
mod memory;
mod model;
pub mod names;
mod orphans;
mod pages;
pub mod reasons;
mod sets;
pub mod snapshot;
mod source;
mod state;
mod table;
pub mod wire;

#[cfg(feature = "python")]
mod python;
