//! Why something was not used: the closed list of `aibrix_extproc/index/results.py`.

/// In the order of `NAMES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    Payload,
    UnreadableEvent,
    UnreadableStored,
    UnreadableRemoved,
    UnreadableCleared,
    UnknownEvent,
    Misfit,
    GroupNotIndexed,
    UnnamedAdapter,
    Conflict,
    OrphanDropped,
    Full,
}

pub const COUNT: usize = 12;

/// As Python spells them.
pub const NAMES: [&str; COUNT] = [
    "payload",
    "unreadable_event",
    "unreadable_stored",
    "unreadable_removed",
    "unreadable_cleared",
    "unknown_event",
    "misfit",
    "group_not_indexed",
    "unnamed_adapter",
    "conflict",
    "orphan_dropped",
    "full",
];

/// Reasons after which the source may hold less than the index says.
const LOSSES: [Reason; 4] = [
    Reason::Payload,
    Reason::UnreadableEvent,
    Reason::UnreadableRemoved,
    Reason::UnreadableCleared,
];

/// How often each reason came up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped(pub [u64; COUNT]);

impl Skipped {
    pub fn add(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
    }

    pub fn is_lossy(&self) -> bool {
        LOSSES.iter().any(|&reason| self.0[reason as usize] > 0)
    }
}
