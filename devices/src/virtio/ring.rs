//! A queue that is being served: chains come out checked, and used ones go back with as few interrupts as possible.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use memory::GuestRam;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{Chain, ChainError};
use super::{Activation, StartError, VirtioInterrupt};

/// Why a queue cannot be served any more. The driver is at fault.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The rings make no sense.
    #[error("the rings of a queue make no sense")]
    Queue(#[source] virtio_queue::Error),
    /// A descriptor chain makes no sense.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

impl From<virtio_queue::Error> for RingError {
    fn from(error: virtio_queue::Error) -> Self {
        Self::Queue(error)
    }
}

/// One queue, with what is needed to serve it.
#[derive(Debug)]
pub(crate) struct Ring {
    queue: Queue,
    memory: GuestRam,
    interrupt: Arc<VirtioInterrupt>,
    /// Whether chains were given back since the driver was last told.
    unannounced: bool,
}

impl Ring {
    /// The only ring of a device that has one queue.
    pub(crate) fn single(activation: Activation) -> Result<Self, StartError> {
        let Activation { queues, memory, interrupt, acked_features: _ } = activation;
        let queue = queues.into_iter().next().ok_or(StartError::Queue { index: 0 })?;
        Ok(Self { queue, memory, interrupt, unannounced: false })
    }

    pub(crate) fn memory(&self) -> &GuestRam {
        &self.memory
    }

    pub(crate) fn interrupt(&self) -> &VirtioInterrupt {
        &self.interrupt
    }

    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The queue as it is: nothing may be in flight.
    pub(crate) fn into_state(self) -> QueueState {
        self.queue.state()
    }

    /// The next chain, checked, or nothing when there is none.
    pub(crate) fn pop(&mut self) -> Result<Option<Chain>, RingError> {
        let size = self.queue.size();
        let Some(descriptors) = self.queue.iter(&self.memory)?.next() else { return Ok(None) };
        Ok(Some(Chain::read(&self.memory, descriptors, size)?))
    }

    /// Puts the chain that was popped last back: it is the next one again.
    pub(crate) fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// How many chains wait.
    pub(crate) fn waiting(&self) -> Result<u16, RingError> {
        let avail = self.queue.avail_idx(&self.memory, Ordering::Acquire)?;
        Ok(avail.0.wrapping_sub(self.queue.next_avail()))
    }

    /// Gives the chain at `head` back, with `written` bytes written into it.
    pub(crate) fn push_used(&mut self, head: u16, written: u32) -> Result<(), RingError> {
        self.queue.add_used(&self.memory, head, written)?;
        self.unannounced = true;
        Ok(())
    }

    /// Tells the driver of the chains given back, if there are any and it wants to know.
    pub(crate) fn announce(&mut self) -> Result<(), RingError> {
        if std::mem::take(&mut self.unannounced) && self.driver_wants_interrupt()? {
            self.interrupt.signal_used();
        }
        Ok(())
    }

    /// Whether the driver wants to know of the chains given back since it was last asked. It says so by an index, or,
    /// without `VIRTIO_F_EVENT_IDX`, by a flag (virtio 1.2, 2.7.7.2), which `virtio-queue` does not look at.
    fn driver_wants_interrupt(&mut self) -> Result<bool, RingError> {
        // This also keeps the load below from being done before the used index is seen.
        if !self.queue.needs_notification(&self.memory)? {
            return Ok(false);
        }
        if self.queue.event_idx_enabled() {
            return Ok(true);
        }
        let flags: u16 = self
            .memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver not to notify while its queue is being looked at anyway.
    pub(crate) fn disable_notification(&mut self) -> Result<(), RingError> {
        Ok(self.queue.disable_notification(&self.memory)?)
    }

    /// Asks the driver to notify, and says whether chains came in meanwhile.
    pub(crate) fn enable_notification(&mut self) -> Result<bool, RingError> {
        Ok(self.queue.enable_notification(&self.memory)?)
    }
}
