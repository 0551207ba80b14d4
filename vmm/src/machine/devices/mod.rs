//! The devices of a VM: made, put on the buses, connected to KVM ([`attach`]), and ended again.
//!
//! ```text
//!   vCPU ── port or MMIO exit ──▶ Bus ──▶ registers
//!   KVM ── ioeventfd ──▶ device loop ──▶ queues ──▶ irqfd ──▶ KVM
//! ```

mod attach;
mod console;
mod saved;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use api::types::DrivePatch;
use devices::bus::BusError;
use devices::event_loop::{DeviceLoop, LoopError};
use devices::generation::{Generation, GenerationError};
use devices::legacy::{I8042, I8042Error, I8042RestoreError, Rtc, RtcRestoreError, Serial, SerialError};
use devices::metrics::{BlockMetrics, EntropyMetrics, I8042Metrics, UartMetrics};
use devices::virtio::block::{Block, BlockError};
use devices::virtio::mmio::MmioRestoreError;
use devices::virtio::rng::EntropyError;
use devices::virtio::{MmioTransport, StartError};

use super::device_config;
use crate::telemetry::metrics::MetricsRegistry;
use crate::vcpu::Buses;
pub use console::{Console, Options};
use saved::Saveable;
pub use saved::{DevicesState, VirtioDeviceState, VirtioState};

/// Why a device could not be made, or did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Two devices at one address.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The device loop.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The serial port.
    #[error("cannot make the serial port")]
    Serial(#[from] SerialError),
    /// The serial port's output.
    #[error("cannot open the serial output {path}")]
    SerialOutput {
        /// What was to be opened.
        path: String,
        /// The host's answer.
        source: io::Error,
    },
    /// A drive.
    #[error("Drive config error: Unable to patch the block device: {0}")]
    Block(#[from] BlockError),
    /// A drive that is not there.
    #[error("Drive config error: Unable to patch the block device: Invalid block device ID: {0}")]
    NoSuchDrive(String),
    /// The entropy device.
    #[error("cannot make the entropy device")]
    Entropy(#[from] EntropyError),
    /// The keyboard.
    #[error("cannot send Ctrl+Alt+Del")]
    Keyboard(#[from] I8042Error),
    /// A keyboard controller of a snapshot that is none.
    #[error(transparent)]
    RestoreKeyboard(#[from] I8042RestoreError),
    /// A clock of a snapshot that is none.
    #[error(transparent)]
    RestoreClock(#[from] RtcRestoreError),
    /// What tells a guest that it is a clone.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// A device that could not go on after a pause.
    #[error("a virtio device cannot go on")]
    Start(#[from] StartError),
    /// A device of a snapshot that is none, or is not the one that is there now.
    #[error("virtio device {index} of the snapshot cannot go on")]
    Restore {
        /// Which, in the order of slots.
        index: usize,
        /// Why.
        source: MmioRestoreError,
    },
    /// The snapshot has other virtio devices than its configuration names.
    #[error(
        "the snapshot has {saved} virtio devices and its configuration {configured}: it was not written by this program"
    )]
    Count {
        /// How many are saved.
        saved: usize,
        /// How many are configured.
        configured: usize,
    },
    /// KVM refused to connect one.
    #[error("kvm refused to {step}")]
    Kvm {
        /// What was being done.
        step: &'static str,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// The host refused a descriptor.
    #[error("cannot {step}")]
    Host {
        /// What was being done.
        step: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// All devices of a VM.
pub struct Devices {
    buses: Buses,
    virtio: Vec<Virtio>,
    drives: Vec<(String, Arc<Mutex<Block>>, BlockMetrics)>,
    entropy_metrics: Option<EntropyMetrics>,
    serial: Arc<Mutex<Serial>>,
    serial_metrics: UartMetrics,
    keyboard: Arc<Mutex<I8042>>,
    keyboard_metrics: I8042Metrics,
    clock: Arc<Mutex<Rtc>>,
    generation: Generation,
    /// Last, so that what it serves is still there when it ends.
    event_loop: DeviceLoop,
}

/// A virtio device and its registers.
#[derive(Debug)]
struct Virtio {
    transport: Arc<Mutex<MmioTransport>>,
    device: Saveable,
}

impl Devices {
    /// The ways to the devices.
    #[must_use]
    pub fn buses(&self) -> Buses {
        self.buses.clone()
    }

    /// How many virtio devices there are.
    #[must_use]
    pub fn virtio_count(&self) -> usize {
        self.virtio.len()
    }

    /// Stops every virtio device and takes its queues; no vCPU may run.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Loop`] where the devices' thread is stuck, for example with a disk that does not answer.
    pub fn pause(&mut self) -> Result<(), DeviceError> {
        let transports = self.transports();
        Ok(self.on_loop(move || transports.iter().for_each(|transport| lock(transport).pause()))?)
    }

    /// Starts every virtio device that was paused.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Start`] of the first that cannot go on, or [`DeviceError::Loop`].
    pub fn resume(&mut self) -> Result<(), DeviceError> {
        let transports = self.transports();
        Ok(self.on_loop(move || transports.iter().try_for_each(|transport| lock(transport).resume()))??)
    }

    /// Starts every virtio device that was paused, once the devices' thread comes to it, without waiting for it: what
    /// is left to do when a pause has failed.
    pub fn release(&mut self) {
        let transports = self.transports();
        let resume = move || {
            for transport in &transports {
                if let Err(error) = lock(transport).resume() {
                    tracing::error!(%error, "a virtio device cannot go on");
                }
            }
        };
        // Not waited for, so the answer is always that it has not come yet.
        let _ = self.event_loop.handle().run(Duration::ZERO, resume);
    }

    /// Changes a drive while it is in use.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] where there is no such drive or the new file cannot be used; then it is as before.
    pub fn patch_drive(&mut self, patch: &DrivePatch) -> Result<(), DeviceError> {
        let drive = self.drives.iter().find(|(id, ..)| *id == patch.drive_id);
        let (_, block, _) = drive.ok_or_else(|| DeviceError::NoSuchDrive(patch.drive_id.clone()))?;
        let (block, patch) = (Arc::clone(block), patch.clone());
        self.on_loop(move || {
            let mut block = lock(&block);
            if let Some(path) = &patch.path_on_host {
                block.update_path(path.as_ref())?;
            }
            let Some(limiter) = &patch.rate_limiter else { return Ok(()) };
            block
                .update_rate_limiter(&device_config::limiter(Some(limiter)))
                .map_err(|source| DeviceError::Host { step: "set a rate limiter's timer", source })
        })?
    }

    fn transports(&self) -> Vec<Arc<Mutex<MmioTransport>>> {
        self.virtio.iter().map(|virtio| Arc::clone(&virtio.transport)).collect()
    }

    /// Runs `work`, which may wait for files, where files are waited for: the driver itself waits only so long.
    fn on_loop<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, LoopError> {
        self.event_loop.handle().run(DEVICES_TIMEOUT, work)
    }

    /// Presses Ctrl+Alt+Del.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Keyboard`] where the guest does not read its keyboard.
    pub fn send_ctrl_alt_del(&mut self) -> Result<(), DeviceError> {
        Ok(lock(&self.keyboard).trigger_ctrl_alt_del()?)
    }

    /// What tells the guest that it is a clone: to be saved, and to be renewed in a guest that was restored.
    pub fn generation(&mut self) -> &mut Generation {
        &mut self.generation
    }

    /// Waits until what the guest wrote to its serial port is written out, for at most `timeout`.
    pub fn flush_serial(&self, timeout: Duration) {
        if !lock(&self.serial).flush(timeout) {
            tracing::warn!("the guest's last output was not taken in time and is lost");
        }
    }

    /// Makes the devices' counters known.
    pub fn register_metrics(&self, registry: &mut MetricsRegistry) {
        for (id, _, metrics) in &self.drives {
            registry.register(format!("block_{id}"), "block", &[("drive", id)], metrics.list());
        }
        if let Some(metrics) = &self.entropy_metrics {
            registry.register("entropy", "entropy", &[], metrics.list());
        }
        registry.register("uart", "uart", &[], self.serial_metrics.list());
        registry.register("i8042", "i8042", &[], self.keyboard_metrics.list());
    }
}

/// How long the devices' thread may take for what the driver asks of it.
const DEVICES_TIMEOUT: Duration = Duration::from_secs(5);

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds a device's lock")
}
