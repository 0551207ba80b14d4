//! The devices of a microVM: virtio over MMIO, and the few legacy ones a PC's kernel expects.
//!
//! ```text
//!   vCPU threads                               the device loop's thread
//!   ────────────                               ────────────────────────
//!   exit ──► Bus ──► Mutex<dyn BusDevice>      epoll ──► Mutex<dyn MutEventSubscriber>
//!                     │  registers only          ▲        │  queues, files, timers
//!                     └──────── EventFd ─────────┘        └──► Interrupt (irqfd) ──► guest
//! ```
//!
//! | room | what it is for |
//! |---|---|
//! | [`bus`] | which device answers at an address |
//! | [`event_loop`] | the thread that queues, files and timers are served on |
//! | [`generation`] | how a guest learns that it is a clone |
//! | [`interrupt`] | how a device gets a guest's attention |
//! | [`limiter`] | token buckets, and the timer that wakes a throttled device |
//! | [`metrics`] | the counters of each device, by name |
//! | [`output`] | output that nobody waits for |
//! | [`legacy`] | serial port, keyboard controller, clock, power, boot timer |
//! | [`virtio`] | the transport, and the devices behind it |
//!
//! Invariants:
//!
//! - A guest can make a device stop, never the VMM: no register or ring content panics, loops for ever, or reaches
//!   memory that the guest did not name.
//! - A register access waits for no I/O, but for the one that resets a device: that waits until its I/O is drained.
//! - A device that is stopped has nothing in flight: its queues are its whole state.
//! - Nothing here knows KVM, nor the API. Descriptors ([`vmm_sys_util::eventfd::EventFd`]) are the seam.

pub mod bus;
pub mod event_loop;
pub mod generation;
pub mod interrupt;
pub mod legacy;
pub mod limiter;
pub mod metrics;
pub mod output;
mod random;
mod sync;
pub mod virtio;
