//! The devices of a VM: made, put on the buses, connected to KVM, and ended again.
//!
//! ```text
//!   vCPU ── port or MMIO exit ──▶ Bus ──▶ registers
//!   KVM ── ioeventfd ──▶ device loop ──▶ queues ──▶ irqfd ──▶ KVM
//! ```

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use api::types::DrivePatch;
use devices::bus::{Bus, BusDevice, BusError};
use devices::event_loop::{DeviceLoop, LoopError};
use devices::interrupt::{Interrupt, IrqFd};
use devices::legacy::{
    BootTimer, I8042, I8042Error, PowerCallback, PowerControl, PowerEvent, Rtc, Serial, SerialError,
    SerialInput,
};
use devices::metrics::{BlockMetrics, EntropyMetrics, I8042Metrics, UartMetrics};
use devices::virtio::block::{Block, BlockError};
use devices::virtio::rng::{Entropy, EntropyError};
use devices::virtio::{MmioTransport, StartError, VirtioDevice};
use kvm_ioctls::{IoEventAddress, VmFd};
use memory::GuestRam;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device_config;
use super::message::{GuestEvent, Notifier};
use super::resources::Resources;
use crate::arch::host::{VirtioSlot, layout};
use crate::telemetry::metrics::MetricsRegistry;
use crate::vcpu::Buses;
use crate::{process, terminal};

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
    /// A device that could not go on after a pause.
    #[error("a virtio device cannot go on")]
    Start(#[from] StartError),
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

/// Where the serial port leads where `/serial` does not say otherwise.
#[derive(Debug)]
pub struct Console {
    /// What is typed; standard input where there is none.
    input: Option<OwnedFd>,
}

impl Console {
    /// Standard input and output.
    #[must_use]
    pub fn standard() -> Self {
        Self { input: None }
    }

    /// Standard output, and what `input` gives.
    #[must_use]
    pub fn with_input(input: OwnedFd) -> Self {
        Self { input: Some(input) }
    }

    /// `None` in the background of a terminal, where reading would stop the whole process.
    fn input(&self) -> io::Result<Option<OwnedFd>> {
        match &self.input {
            Some(input) => input.try_clone().map(Some),
            None if io::stdin().is_terminal() && !terminal::is_ours() => Ok(None),
            None => io::stdin().as_fd().try_clone_to_owned().map(Some),
        }
    }
}

/// What the process that a VM runs in gives its devices.
#[derive(Debug)]
pub struct Options {
    /// Where the serial port leads.
    pub console: Console,
    /// Whether there is a boot timer.
    pub boot_timer: bool,
}

/// All devices of a VM.
pub struct Devices {
    buses: Buses,
    virtio: Vec<Arc<Mutex<MmioTransport>>>,
    drives: Vec<(String, Arc<Mutex<Block>>, BlockMetrics)>,
    entropy_metrics: Option<EntropyMetrics>,
    serial: Arc<Mutex<Serial>>,
    serial_metrics: UartMetrics,
    keyboard: Arc<Mutex<I8042>>,
    keyboard_metrics: I8042Metrics,
    /// Last, so that what it serves is still there when it ends.
    event_loop: DeviceLoop,
}

impl Devices {
    /// Makes the devices that `resources` names and connects them to `vm`.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] of the first that cannot be made.
    pub fn attach(
        vm: &VmFd,
        ram: &GuestRam,
        resources: &Resources,
        options: &Options,
        notifier: &Notifier,
    ) -> Result<Self, DeviceError> {
        let mut builder = Builder {
            vm,
            ram,
            ports: Bus::new(),
            mmio: Bus::new(),
            virtio: Vec::new(),
            ended: Arc::default(),
            event_loop: DeviceLoop::spawn("devices")?,
        };
        let mut drives = Vec::new();
        for drive in &resources.drives {
            builder.virtio(Arc::clone(&drive.block))?;
            drives.push((drive.config.drive_id.clone(), Arc::clone(&drive.block), drive.metrics.clone()));
        }
        let entropy_metrics = resources.entropy.as_ref().map(|config| builder.entropy(config)).transpose()?;
        let serial_metrics = UartMetrics::default();
        let serial = builder.serial(resources.serial.as_ref(), &options.console, serial_metrics.clone())?;
        let keyboard_metrics = I8042Metrics::default();
        let keyboard = builder.keyboard(notifier, keyboard_metrics.clone())?;
        builder.port_device(layout::RTC_PORT, 2, Rtc::new())?;
        builder.port_device(
            layout::SLEEP_CONTROL_PORT,
            PowerControl::LEN,
            PowerControl::new(builder.on_power(notifier)),
        )?;
        if options.boot_timer {
            let timer = Arc::new(Mutex::new(BootTimer::new(Instant::now())));
            builder.mmio.insert(layout::BOOT_TIMER, BootTimer::LEN, timer)?;
        }
        Ok(Self {
            buses: Buses {
                ports: Arc::new(builder.ports),
                mmio: Arc::new(builder.mmio),
                ended: builder.ended,
            },
            virtio: builder.virtio,
            drives,
            entropy_metrics,
            serial,
            serial_metrics,
            keyboard,
            keyboard_metrics,
            event_loop: builder.event_loop,
        })
    }

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
        let transports = self.virtio.clone();
        Ok(self.on_loop(move || transports.iter().for_each(|transport| lock(transport).pause()))?)
    }

    /// Starts every virtio device that was paused.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Start`] of the first that cannot go on, or [`DeviceError::Loop`].
    pub fn resume(&mut self) -> Result<(), DeviceError> {
        let transports = self.virtio.clone();
        Ok(self.on_loop(move || transports.iter().try_for_each(|transport| lock(transport).resume()))??)
    }

    /// Starts every virtio device that was paused, once the devices' thread comes to it, without waiting for it: what
    /// is left to do when a pause has failed.
    pub fn release(&mut self) {
        let transports = self.virtio.clone();
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

/// What is filled while devices are made.
struct Builder<'a> {
    vm: &'a VmFd,
    ram: &'a GuestRam,
    ports: Bus,
    mmio: Bus,
    virtio: Vec<Arc<Mutex<MmioTransport>>>,
    /// Set when the guest ends itself.
    ended: Arc<AtomicBool>,
    event_loop: DeviceLoop,
}

impl Builder<'_> {
    /// Puts a virtio device into the next slot: on the bus, into the loop, and its notifications and interrupt into KVM.
    fn virtio<D>(&mut self, device: Arc<Mutex<D>>) -> Result<(), DeviceError>
    where
        D: VirtioDevice + event_manager::MutEventSubscriber + 'static,
    {
        let slot = VirtioSlot::new(self.virtio.len());
        let line = self.line(slot.gsi)?;
        let transport = MmioTransport::new(Arc::clone(&device) as _, self.ram.clone(), line)
            .map_err(|source| DeviceError::Host { step: "make a virtio device", source })?;
        let register = IoEventAddress::Mmio(slot.base + MmioTransport::QUEUE_NOTIFY_OFFSET);
        for (index, event) in (0_u32..).zip(transport.notify_events()) {
            self.vm.register_ioevent(event, &register, index).map_err(|source| DeviceError::Kvm {
                step: "pass on notifications of a virtio device",
                source,
            })?;
        }
        let transport = Arc::new(Mutex::new(transport));
        self.mmio.insert(slot.base, MmioTransport::LEN, Arc::clone(&transport) as _)?;
        self.event_loop.handle().add(device)?;
        self.virtio.push(transport);
        Ok(())
    }

    fn entropy(&mut self, config: &api::types::Entropy) -> Result<EntropyMetrics, DeviceError> {
        let metrics = EntropyMetrics::default();
        let limiter = device_config::limiter(config.rate_limiter.as_ref());
        self.virtio(Arc::new(Mutex::new(Entropy::new(&limiter, metrics.clone())?)))?;
        Ok(metrics)
    }

    fn serial(
        &mut self,
        config: Option<&api::types::Serial>,
        console: &Console,
        metrics: UartMetrics,
    ) -> Result<Arc<Mutex<Serial>>, DeviceError> {
        let output = serial_output(config)?;
        let limit = config.and_then(|config| config.rate_limiter.as_ref()).map(device_config::bucket);
        let line = self.line(layout::SERIAL_GSI)?;
        let serial = Arc::new(Mutex::new(Serial::new(line, Some(output), limit, metrics)?));
        let unusable = |source| DeviceError::Host { step: "use the console's input", source };
        if let Some(source) = console.input().map_err(unusable)? {
            let input = SerialInput::new(&serial, source).map_err(unusable)?;
            self.event_loop.handle().add(Arc::new(Mutex::new(input)))?;
        }
        self.ports.insert(layout::SERIAL_PORT.into(), Serial::LEN, Arc::clone(&serial) as _)?;
        Ok(serial)
    }

    fn keyboard(
        &mut self,
        notifier: &Notifier,
        metrics: I8042Metrics,
    ) -> Result<Arc<Mutex<I8042>>, DeviceError> {
        let line = self.line(layout::I8042_GSI)?;
        let keyboard = Arc::new(Mutex::new(I8042::new(self.on_power(notifier), line, metrics)));
        self.ports.insert(layout::I8042_PORT.into(), I8042::LEN, Arc::clone(&keyboard) as _)?;
        Ok(keyboard)
    }

    /// Tells the driver of a power event, and the vCPUs that there is nothing more to run.
    fn on_power(&self, notifier: &Notifier) -> PowerCallback {
        let (notifier, ended) = (notifier.clone(), Arc::clone(&self.ended));
        Box::new(move |event| {
            ended.store(true, Ordering::Release);
            notifier.guest(match event {
                PowerEvent::Off => GuestEvent::PowerOff,
                PowerEvent::Reset => GuestEvent::Reset,
            });
        })
    }

    fn port_device(
        &mut self,
        first_port: u16,
        ports: u64,
        device: impl BusDevice + 'static,
    ) -> Result<(), DeviceError> {
        Ok(self.ports.insert(first_port.into(), ports, Arc::new(Mutex::new(device)))?)
    }

    /// An interrupt line that KVM raises by itself.
    fn line(&self, gsi: u32) -> Result<Arc<dyn Interrupt>, DeviceError> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(|source| DeviceError::Host { step: "make an interrupt line", source })?;
        self.vm
            .register_irqfd(&event, gsi)
            .map_err(|source| DeviceError::Kvm { step: "connect an interrupt line", source })?;
        Ok(Arc::new(IrqFd(event)))
    }
}

fn serial_output(config: Option<&api::types::Serial>) -> Result<Box<dyn Write + Send>, DeviceError> {
    match config.and_then(|config| config.serial_out_path.as_ref()) {
        Some(path) => {
            let file = crate::telemetry::open_output(path)
                .map_err(|source| DeviceError::SerialOutput { path: path.clone(), source })?;
            Ok(Box::new(file))
        }
        None => process::standard_output()
            .map_err(|source| DeviceError::Host { step: "use standard output", source }),
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds a device's lock")
}
