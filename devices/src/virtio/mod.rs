//! Virtio devices, by the specification's version 1.2, over the MMIO transport.
//!
//! ```text
//!   vCPU                                             device loop
//!   MmioTransport (registers, status)                MutEventSubscriber of the device
//!      │  start(Activation) / stop() ──► device ◄────── queue event, timer, completion
//!      │                                   │
//!      ├──── Arc<VirtioInterrupt> ◄────────┤   atomic; the irqfd
//!      └──── Arc<ConfigSpace> ◄────────────┘   a few bytes under a short lock, and their generation
//! ```
//!
//! A device is one object that both sides lock: the loop while it serves an event, the transport only to start and to
//! stop it. What a vCPU touches often (interrupt status, configuration) is outside of that lock, so a vCPU that
//! acknowledges an interrupt never waits for a disk. Locks are taken in the order transport, device, configuration.
//!
//! Invariants:
//!
//! - A stopped device has nothing in flight and gives its queues back: pausing is saving.
//! - A device's descriptors are the same from its making to its end, started or not: they are registered once.
//! - A driver that breaks the rules stops its own device: [`VirtioInterrupt::fail`] says so in the status register
//!   (`DEVICE_NEEDS_RESET`), by an interrupt, and in a metric. A reset by the driver brings the device back.

pub mod block;
mod chain;
mod config;
mod interrupt;
pub mod mmio;
mod ring;
pub mod rng;
mod state;
#[cfg(test)]
pub(crate) mod test_driver;

use std::sync::Arc;

use memory::GuestRam;
use prometheus_client::metrics::counter::Counter;
use virtio_queue::{Queue, QueueState};
use vmm_sys_util::eventfd::EventFd;

pub use chain::ChainError;
pub use config::ConfigSpace;
pub use interrupt::VirtioInterrupt;
pub use mmio::MmioTransport;
pub use ring::RingError;
pub use state::SavedQueue;

/// Feature bits that belong to no kind of device (virtio 1.2, 6), as bits of a 64-bit mask.
pub mod feature {
    use virtio_bindings::{virtio_config, virtio_ring};

    /// The device follows version 1 of the specification; a driver must accept it here.
    pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
    /// Notifications are held back by index.
    pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// Chains can continue in a table of their own.
    pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
}

/// What a device gets when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// The queues, as the driver set them up, checked to be inside RAM.
    pub queues: Vec<Queue>,
    /// The guest's RAM.
    pub memory: GuestRam,
    /// The device's interrupt.
    pub interrupt: Arc<VirtioInterrupt>,
    /// The features the driver accepted, a subset of those offered.
    pub acked_features: u64,
}

/// Why a device could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A queue is not set up, or not validly.
    #[error("queue {index} is not set up validly")]
    Queue {
        /// The queue's index.
        index: usize,
    },
    /// The host refused.
    #[error("the host refused what the device needs")]
    Host(#[from] std::io::Error),
}

/// A device behind a transport.
pub trait VirtioDevice: Send {
    /// The kind of device (virtio 1.2, 5).
    fn device_type(&self) -> u32;

    /// The features offered.
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two.
    fn queue_max_sizes(&self) -> &[u16];

    /// What tells the device of new buffers, one for each queue. They stay the same for the device's life.
    fn queue_events(&self) -> &[EventFd];

    /// The configuration space, shared with the device.
    fn config_space(&self) -> Arc<ConfigSpace>;

    /// Counts how often the device stopped because of what its driver did.
    fn device_errors(&self) -> Counter;

    /// Counts how often the device could not be started.
    fn activate_fails(&self) -> Counter;

    /// Takes the queues and serves them from now on.
    ///
    /// # Errors
    ///
    /// [`StartError`] when it cannot; the device then stays stopped.
    fn start(&mut self, activation: Activation) -> Result<(), StartError>;

    /// Finishes what is in flight and gives the queues back, in their order. A device that is not started has none.
    fn stop(&mut self) -> Vec<QueueState>;
}
