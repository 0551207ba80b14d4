//! Making devices, and connecting them to the buses, the device loop and KVM.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use devices::bus::{Bus, BusDevice};
use devices::event_loop::DeviceLoop;
use devices::generation::{Generation, Place};
use devices::interrupt::{Interrupt, IrqFd};
use devices::legacy::{BootTimer, I8042, PowerCallback, PowerControl, PowerEvent, Rtc, Serial, SerialInput};
use devices::metrics::{EntropyMetrics, I8042Metrics, UartMetrics};
use devices::virtio::rng::Entropy;
use devices::virtio::{MmioTransport, VirtioDevice};
use kvm_ioctls::{IoEventAddress, VmFd};
use memory::GuestRam;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::console::serial_output;
use super::saved::Saveable;
use super::{Console, DeviceError, Devices, DevicesState, Options, Virtio};
use crate::arch::host::{VirtioSlot, layout};
use crate::machine::device_config;
use crate::machine::message::{GuestEvent, Notifier};
use crate::machine::resources::Resources;
use crate::vcpu::Buses;

impl Devices {
    /// Makes the devices that `resources` names and connects them to `vm`: new ones, or, paused, those that were saved.
    /// Those may interrupt at once: interrupt controllers have their state by then.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] of the first that cannot be made, or that is not the one that was saved.
    pub fn attach(
        vm: &VmFd,
        ram: &GuestRam,
        resources: &Resources,
        options: &Options,
        notifier: &Notifier,
        saved: Option<&DevicesState>,
    ) -> Result<Self, DeviceError> {
        let configured = resources.drives.len() + usize::from(resources.entropy.is_some());
        if let Some(saved) = saved.map(|saved| saved.virtio.len()).filter(|saved| *saved != configured) {
            return Err(DeviceError::Count { saved, configured });
        }
        let mut builder = Builder {
            vm,
            ram,
            saved,
            ports: Bus::new(),
            mmio: Bus::new(),
            virtio: Vec::new(),
            ended: Arc::default(),
            event_loop: DeviceLoop::spawn("devices")?,
        };
        let mut drives = Vec::new();
        for drive in &resources.drives {
            let device = Saveable::Block(drive.config.drive_id.clone(), Arc::clone(&drive.block));
            builder.virtio(Arc::clone(&drive.block), device)?;
            drives.push((drive.config.drive_id.clone(), Arc::clone(&drive.block), drive.metrics.clone()));
        }
        let entropy_metrics = resources.entropy.as_ref().map(|config| builder.entropy(config)).transpose()?;
        let serial_metrics = UartMetrics::default();
        let serial = builder.serial(resources.serial.as_ref(), &options.console, serial_metrics.clone())?;
        let keyboard_metrics = I8042Metrics::default();
        let keyboard = builder.keyboard(notifier, keyboard_metrics.clone())?;
        let clock = builder.clock()?;
        builder.port_device(
            layout::SLEEP_CONTROL_PORT,
            PowerControl::LEN,
            PowerControl::new(builder.on_power(notifier)),
        )?;
        let generation = builder.generation()?;
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
            clock,
            generation,
            event_loop: builder.event_loop,
        })
    }
}

/// What is filled while devices are made.
struct Builder<'a> {
    vm: &'a VmFd,
    ram: &'a GuestRam,
    saved: Option<&'a DevicesState>,
    ports: Bus,
    mmio: Bus,
    virtio: Vec<Virtio>,
    /// Set when the guest ends itself.
    ended: Arc<AtomicBool>,
    event_loop: DeviceLoop,
}

impl Builder<'_> {
    /// Puts a virtio device into the next slot: on the bus, into the loop, and its notifications and interrupt into KVM.
    fn virtio<D>(&mut self, device: Arc<Mutex<D>>, saveable: Saveable) -> Result<(), DeviceError>
    where
        D: VirtioDevice + event_manager::MutEventSubscriber + 'static,
    {
        let index = self.virtio.len();
        let slot = VirtioSlot::new(index);
        let line = self.line(slot.gsi)?;
        let (registers, ram) = (Arc::clone(&device) as _, self.ram.clone());
        let transport = match self.saved.map(|saved| &saved.virtio[index].transport) {
            Some(state) => MmioTransport::restore(registers, ram, line, state)
                .map_err(|source| DeviceError::Restore { index, source })?,
            None => MmioTransport::new(registers, ram, line)
                .map_err(|source| DeviceError::Host { step: "make a virtio device", source })?,
        };
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
        self.virtio.push(Virtio { transport, device: saveable });
        Ok(())
    }

    fn entropy(&mut self, config: &api::types::Entropy) -> Result<EntropyMetrics, DeviceError> {
        let metrics = EntropyMetrics::default();
        let entropy = match self.saved.and_then(DevicesState::entropy) {
            Some(state) => Entropy::restore(state, metrics.clone())?,
            None => Entropy::new(&device_config::limiter(config.rate_limiter.as_ref()), metrics.clone())?,
        };
        let entropy = Arc::new(Mutex::new(entropy));
        self.virtio(Arc::clone(&entropy), Saveable::Entropy(entropy))?;
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
        let serial = match self.saved.map(|saved| &saved.serial) {
            Some(state) => Serial::restore(state, line, Some(output), metrics)?,
            None => Serial::new(line, Some(output), limit, metrics)?,
        };
        let serial = Arc::new(Mutex::new(serial));
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
        let on_power = self.on_power(notifier);
        let keyboard = match self.saved.map(|saved| &saved.keyboard) {
            Some(state) => I8042::restore(state, on_power, line, metrics)?,
            None => I8042::new(on_power, line, metrics),
        };
        let keyboard = Arc::new(Mutex::new(keyboard));
        self.ports.insert(layout::I8042_PORT.into(), I8042::LEN, Arc::clone(&keyboard) as _)?;
        Ok(keyboard)
    }

    fn clock(&mut self) -> Result<Arc<Mutex<Rtc>>, DeviceError> {
        let clock = match self.saved.map(|saved| &saved.clock) {
            Some(state) => Rtc::restore(state)?,
            None => Rtc::new(),
        };
        let clock = Arc::new(Mutex::new(clock));
        self.ports.insert(layout::RTC_PORT.into(), 2, Arc::clone(&clock) as _)?;
        Ok(clock)
    }

    /// Every guest has one: it is of no use to a guest that is told of it only when it is a clone already.
    fn generation(&self) -> Result<Generation, DeviceError> {
        let place = Place { id: layout::VM_GENERATION_ID.0, clock: layout::VM_CLOCK.0 };
        let (ram, line) = (self.ram.clone(), self.line(layout::GENERATION_GSI)?);
        Ok(match self.saved.map(|saved| &saved.generation) {
            Some(state) => Generation::restore(state, ram, line)?,
            None => Generation::attach(ram, place, line)?,
        })
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
