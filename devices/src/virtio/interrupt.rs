//! The interrupt of a virtio device, and the part of its status that the device itself sets.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use prometheus_client::metrics::counter::Counter;

use crate::interrupt::Interrupt;

/// Bits of the interrupt status register (virtio 1.2, 4.2.2).
const USED_BUFFER: u32 = 1 << 0;
const CONFIG_CHANGE: u32 = 1 << 1;

/// What a device tells its driver. Everything here is atomic: neither side waits.
pub struct VirtioInterrupt {
    status: AtomicU32,
    needs_reset: AtomicBool,
    line: Arc<dyn Interrupt>,
    device_errors: Counter,
}

impl std::fmt::Debug for VirtioInterrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioInterrupt")
            .field("status", &self.status())
            .field("needs_reset", &self.needs_reset())
            .finish_non_exhaustive()
    }
}

impl VirtioInterrupt {
    /// Interrupts by `line`; `device_errors` counts the calls of [`fail`](Self::fail) that stop a device.
    pub(crate) fn new(line: Arc<dyn Interrupt>, device_errors: Counter) -> Self {
        Self { status: AtomicU32::new(0), needs_reset: AtomicBool::new(false), line, device_errors }
    }

    /// Tells the driver that buffers were used.
    pub fn signal_used(&self) {
        self.signal(USED_BUFFER);
    }

    /// Tells the driver that the configuration has changed.
    pub fn signal_config(&self) {
        self.signal(CONFIG_CHANGE);
    }

    fn signal(&self, bits: u32) {
        // Before the edge: whoever takes the interrupt has to find its cause.
        self.status.fetch_or(bits, Ordering::SeqCst);
        if let Err(error) = self.line.trigger() {
            tracing::error!(%error, "cannot interrupt the guest");
        }
    }

    /// Says that the device has stopped and needs a reset, because of what its driver did.
    pub fn fail(&self, reason: &dyn Display) {
        if !self.needs_reset.swap(true, Ordering::SeqCst) {
            tracing::warn!(%reason, "a virtio device has stopped until its driver resets it");
            self.device_errors.inc();
            self.signal_config();
        }
    }

    /// Whether the device has stopped and needs a reset.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// The interrupt status register.
    pub(crate) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    pub(crate) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(crate) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    /// Raises the line again if the driver has something left to acknowledge. Its edge may have been lost on the way:
    /// KVM passes it on from a queue of its own, which no saved state tells of. One edge too many does no harm.
    pub(crate) fn retrigger(&self) {
        if self.status() != 0 {
            self.signal(0);
        }
    }

    /// Puts saved values back. An interrupt that is pending in them is raised by the interrupt controller's own
    /// saved state.
    pub(crate) fn restore(&self, status: u32, needs_reset: bool) {
        self.status.store(status & (USED_BUFFER | CONFIG_CHANGE), Ordering::SeqCst);
        self.needs_reset.store(needs_reset, Ordering::SeqCst);
    }
}
