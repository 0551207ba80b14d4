//! The virtio-mmio transport, version 2 (virtio 1.2, 4.2).
//!
//! Its registers are all it is: which features and queues the driver chose, and the status. The rings are served by
//! the device, on another thread, woken through eventfds that KVM signals without an exit when the VMM has it do so
//! ([`MmioTransport::notify_events`]).
//!
//! ```text
//!            DRIVER_OK                     pause()
//!   Idle ───────────────────► Running ──────────────► Paused
//!    ▲                          │  ▲                    │
//!    │    0, or FAILED          │  └──── resume() ──────┤
//!    └──────────────────────────┴───────────────────────┘
//! ```
//!
//! Invariants:
//!
//! - `queues` is the state of the queues whenever the device does not run; while it runs, the device has it.
//! - Every access is answered: a register that is not there, an access of the wrong size, or a write at the wrong
//!   time reads as zero, or changes nothing.
//! - Queues are used only after they were found to be inside RAM and of a valid size.

mod registers;
mod state;
mod status;

use std::io;
use std::sync::{Arc, Mutex};

use memory::GuestRam;
use prometheus_client::metrics::counter::Counter;
use virtio_bindings::virtio_mmio as register;
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::{Activation, ConfigSpace, SavedQueue, StartError, VirtioDevice, VirtioInterrupt, feature};
use crate::interrupt::Interrupt;
use crate::sync::lock;
pub use state::{MMIO_STATE_VERSION, MmioRestoreError, MmioTransportState};
use status::Action;

/// Whether the device has the queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Idle,
    Running,
    Paused,
}

/// A virtio device's registers in memory.
pub struct MmioTransport {
    device: Arc<Mutex<dyn VirtioDevice>>,
    device_type: u32,
    device_features: u64,
    config: Arc<ConfigSpace>,
    activate_fails: Counter,
    interrupt: Arc<VirtioInterrupt>,
    memory: GuestRam,
    notify: Vec<EventFd>,
    life: Life,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueState>,
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device_type", &self.device_type)
            .field("status", &self.status)
            .field("life", &self.life)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// The length of the device, in bytes.
    pub const LEN: u64 = 0x1000;
    /// The offset of the register that a driver writes a queue's index to, for KVM's ioeventfd.
    pub const QUEUE_NOTIFY_OFFSET: u64 = register::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

    /// Registers for `device`, whose buffers are in `memory` and whose interrupt is `line`.
    ///
    /// The device is also to be added to the device loop: the transport only starts and stops it.
    ///
    /// # Errors
    ///
    /// When the host gives no descriptor.
    pub fn new(
        device: Arc<Mutex<dyn VirtioDevice>>,
        memory: GuestRam,
        line: Arc<dyn Interrupt>,
    ) -> io::Result<Self> {
        let locked = lock(&device);
        let interrupt = Arc::new(VirtioInterrupt::new(line, locked.device_errors()));
        let (device_type, device_features) = (locked.device_type(), locked.features() | feature::VERSION_1);
        let (config, activate_fails) = (locked.config_space(), locked.activate_fails());
        let notify = locked.queue_events().iter().map(EventFd::try_clone).collect::<io::Result<_>>()?;
        let queues = locked.queue_max_sizes().iter().map(|&max_size| fresh_queue(max_size)).collect();
        drop(locked);
        Ok(Self {
            device,
            device_type,
            device_features,
            config,
            activate_fails,
            interrupt,
            memory,
            notify,
            life: Life::Idle,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
        })
    }

    /// Like [`new`](Self::new), with the registers that `state` was saved from. A device that was running is paused:
    /// [`resume`](Self::resume) starts it.
    ///
    /// # Errors
    ///
    /// [`MmioRestoreError`] when the state does not fit the device, or the host gives no descriptor.
    pub fn restore(
        device: Arc<Mutex<dyn VirtioDevice>>,
        memory: GuestRam,
        line: Arc<dyn Interrupt>,
        state: &MmioTransportState,
    ) -> Result<Self, MmioRestoreError> {
        let mut transport = Self::new(device, memory, line)?;
        transport.load(state)?;
        Ok(transport)
    }

    fn load(&mut self, state: &MmioTransportState) -> Result<(), MmioRestoreError> {
        if state.version != MMIO_STATE_VERSION {
            return Err(MmioRestoreError::Version { found: state.version });
        }
        let same_queues = self.queues.iter().map(|queue| queue.max_size);
        if state.device_type != self.device_type || !same_queues.eq(state.queues.iter().map(|q| q.max_size)) {
            return Err(MmioRestoreError::OtherDevice);
        }
        let missing = state.driver_features & !self.device_features;
        // Before they are agreed on a driver may write what it likes: it is refused then.
        let agreed = state.status & status::FEATURES_OK != 0;
        if agreed && missing != 0 {
            return Err(MmioRestoreError::Features { missing });
        }
        self.driver_features = state.driver_features;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.queue_select = state.queue_select;
        self.status = state.status;
        self.life = if state.running { Life::Paused } else { Life::Idle };
        self.queues = state.queues.iter().map(QueueState::from).collect();
        self.interrupt.restore(state.interrupt_status, state.needs_reset);
        self.config.restore_generation(state.config_generation);
        Ok(())
    }

    /// The registers as they are. The device has to be paused, or its queues are not known here.
    #[must_use]
    pub fn save(&self) -> MmioTransportState {
        MmioTransportState {
            version: MMIO_STATE_VERSION,
            device_type: self.device_type,
            device_features: self.device_features,
            driver_features: self.driver_features,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            queue_select: self.queue_select,
            status: self.status,
            needs_reset: self.interrupt.needs_reset(),
            running: self.life != Life::Idle,
            interrupt_status: self.interrupt.status(),
            config_generation: self.config.generation(),
            queues: self.queues.iter().map(SavedQueue::from).collect(),
        }
    }

    /// What tells the device of new buffers, by the index of the queue. The VMM may have KVM signal them when the
    /// guest writes that index to [`QUEUE_NOTIFY_OFFSET`](Self::QUEUE_NOTIFY_OFFSET).
    #[must_use]
    pub fn notify_events(&self) -> Vec<&EventFd> {
        self.notify.iter().collect()
    }

    /// Stops the device, if it runs, and takes its queues: what is in flight is finished first.
    pub fn pause(&mut self) {
        if self.life == Life::Running {
            self.stop_device();
            self.life = Life::Paused;
        }
    }

    /// Starts the device again, if it was paused, and has it look at its queues.
    ///
    /// # Errors
    ///
    /// [`StartError`] when a queue is not where it can be, or the host refuses. The device then needs a reset by its
    /// driver, as its registers say.
    pub fn resume(&mut self) -> Result<(), StartError> {
        if self.life == Life::Running {
            return Ok(());
        }
        // One that does not run may have said so last of all.
        self.interrupt.retrigger();
        if std::mem::replace(&mut self.life, Life::Idle) == Life::Idle {
            return Ok(());
        }
        // One that has stopped because of its driver stays so.
        if self.interrupt.needs_reset() {
            return Ok(());
        }
        self.start_device()
    }

    /// Starts the device with the queues as they are. If that fails, the driver is told to reset it.
    fn start_device(&mut self) -> Result<(), StartError> {
        self.try_start_device().inspect_err(|error| {
            self.activate_fails.inc();
            self.interrupt.fail(error);
        })
    }

    fn try_start_device(&mut self) -> Result<(), StartError> {
        let event_idx = self.driver_features & feature::EVENT_IDX != 0;
        let queues = self
            .queues
            .iter()
            .enumerate()
            .map(|(index, state)| {
                let queue = Queue::try_from(QueueState { event_idx_enabled: event_idx, ..*state }).ok();
                queue.filter(|queue| queue.is_valid(&self.memory)).ok_or(StartError::Queue { index })
            })
            .collect::<Result<Vec<_>, _>>()?;
        lock(&self.device).start(Activation {
            queues,
            memory: self.memory.clone(),
            interrupt: Arc::clone(&self.interrupt),
            acked_features: self.driver_features,
        })?;
        self.life = Life::Running;
        // Buffers may have been made available before the device could look.
        for event in &self.notify {
            event.write(1)?;
        }
        Ok(())
    }

    fn stop_device(&mut self) {
        if self.life == Life::Running {
            self.queues = lock(&self.device).stop();
            self.life = Life::Idle;
        }
    }

    fn reset(&mut self) {
        self.stop_device();
        self.life = Life::Idle;
        self.interrupt.reset();
        self.status = 0;
        (self.device_features_select, self.driver_features_select) = (0, 0);
        self.driver_features = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            *queue = fresh_queue(queue.max_size);
        }
    }

    fn write_status(&mut self, value: u32) {
        let offered = self.driver_features & !self.device_features == 0;
        let features_fit = offered && self.driver_features & feature::VERSION_1 != 0;
        let (status, action) = status::next(self.status, value, features_fit);
        self.status = status;
        match action {
            Action::None => {}
            Action::Reset => self.reset(),
            Action::Stop => {
                self.stop_device();
                self.life = Life::Idle;
            }
            // The driver learns of a failure from the register.
            Action::Start => drop(self.start_device()),
        }
    }
}

/// A queue that no driver has set up.
fn fresh_queue(max_size: u16) -> QueueState {
    QueueState { max_size, size: max_size, ..QueueState::default() }
}

#[cfg(test)]
mod tests;
