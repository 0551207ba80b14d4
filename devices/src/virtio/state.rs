//! A queue as it is saved.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

/// A queue as it is saved: plain numbers, which are checked when they are used again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    /// The largest size offered.
    pub max_size: u16,
    /// The size the driver chose.
    pub size: u16,
    /// Whether the driver made it ready.
    pub ready: bool,
    /// Whether notifications are held back by index.
    pub event_idx: bool,
    /// The guest physical address of the descriptor table.
    pub desc_table: u64,
    /// The guest physical address of the available ring.
    pub avail_ring: u64,
    /// The guest physical address of the used ring.
    pub used_ring: u64,
    /// The index of the next available entry that the device looks at.
    pub next_avail: u16,
    /// The index of the next used entry that the device writes.
    pub next_used: u16,
}

impl From<&QueueState> for SavedQueue {
    fn from(queue: &QueueState) -> Self {
        Self {
            max_size: queue.max_size,
            size: queue.size,
            ready: queue.ready,
            event_idx: queue.event_idx_enabled,
            desc_table: queue.desc_table,
            avail_ring: queue.avail_ring,
            used_ring: queue.used_ring,
            next_avail: queue.next_avail,
            next_used: queue.next_used,
        }
    }
}

impl From<&SavedQueue> for QueueState {
    fn from(saved: &SavedQueue) -> Self {
        Self {
            max_size: saved.max_size,
            next_avail: saved.next_avail,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.desc_table,
            avail_ring: saved.avail_ring,
            used_ring: saved.used_ring,
        }
    }
}
