//! A driver made by hand: it builds rings in guest RAM and drives a transport through its registers, for tests.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::MutEventSubscriber;
use memory::{Backing, GuestRam, RamRange};
use virtio_bindings::virtio_mmio as register;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::mmio::{MmioTransport, MmioTransportState};
use super::{VirtioDevice, feature};
use crate::bus::BusDevice;
use crate::event_loop::{DeviceLoop, settle};
use crate::interrupt::IrqFd;
use crate::sync::lock;

/// Flags of descriptors (virtio 1.2, 2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) const RAM_BYTES: u64 = 4 << 20;
pub(crate) const DESC_TABLE: u64 = 0x1_0000;
pub(crate) const AVAIL_RING: u64 = 0x2_0000;
pub(crate) const USED_RING: u64 = 0x3_0000;
/// Free for a test's own use from here on.
pub(crate) const DATA: u64 = 0x10_0000;

pub(crate) const STATUS_NEEDS_RESET: u32 = 0x40;
pub(crate) const STATUS_READY: u32 = 0xf;

/// How long a test waits for what has to come. Only a test that fails waits this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `probe` gives something.
pub(crate) fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn guest_ram() -> GuestRam {
    let range = RamRange { gpa: GuestAddress(0), size_bytes: RAM_BYTES };
    GuestRam::new(&[range], Backing::Anonymous { transparent_huge_pages: false }).unwrap()
}

/// A driver, its device's transport, and the loop the device is on.
pub(crate) struct TestDriver<D> {
    pub(crate) device: Arc<Mutex<D>>,
    pub(crate) transport: MmioTransport,
    pub(crate) ram: GuestRam,
    pub(crate) line: EventFd,
    pub(crate) device_loop: DeviceLoop,
    queue_size: u16,
    next_descriptor: u16,
    avail_index: u16,
    used_index: u16,
}

impl<D: VirtioDevice + MutEventSubscriber + 'static> TestDriver<D> {
    pub(crate) fn new(device: D) -> Self {
        let device = Arc::new(Mutex::new(device));
        let (ram, line) = (guest_ram(), EventFd::new(EFD_NONBLOCK).unwrap());
        let irq = Arc::new(IrqFd(line.try_clone().unwrap()));
        let transport = MmioTransport::new(device.clone(), ram.clone(), irq).unwrap();
        Self::start(device, transport, ram, line)
    }

    /// The same guest, after its device was saved and restored: `device` takes over.
    pub(crate) fn moved_to(self, device: D, state: &MmioTransportState) -> Self {
        let device = Arc::new(Mutex::new(device));
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let irq = Arc::new(IrqFd(line.try_clone().unwrap()));
        let transport = MmioTransport::restore(device.clone(), self.ram.clone(), irq, state).unwrap();
        Self {
            next_descriptor: self.next_descriptor,
            queue_size: self.queue_size,
            avail_index: self.avail_index,
            used_index: self.used_index,
            ..Self::start(device, transport, self.ram, line)
        }
    }

    fn start(device: Arc<Mutex<D>>, transport: MmioTransport, ram: GuestRam, line: EventFd) -> Self {
        let device_loop = DeviceLoop::spawn("test-devices").unwrap();
        device_loop.handle().add(device.clone()).unwrap();
        Self {
            device,
            transport,
            ram,
            line,
            device_loop,
            queue_size: 256,
            next_descriptor: 0,
            avail_index: 0,
            used_index: 0,
        }
    }

    pub(crate) fn read(&mut self, offset: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(u64::from(offset), &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&mut self, offset: u32, value: u32) {
        self.transport.write(u64::from(offset), &value.to_le_bytes());
    }

    pub(crate) fn status(&mut self) -> u32 {
        self.read(register::VIRTIO_MMIO_STATUS)
    }

    /// Resets the device and agrees on `features`, as far as they are offered.
    pub(crate) fn negotiate(&mut self, features: u64) -> u64 {
        self.write(register::VIRTIO_MMIO_STATUS, 0);
        for ring in [DESC_TABLE, AVAIL_RING, USED_RING] {
            self.put(ring, &[0; 0x1000]);
        }
        (self.next_descriptor, self.avail_index, self.used_index) = (0, 0, 0);
        self.write(register::VIRTIO_MMIO_STATUS, 1);
        self.write(register::VIRTIO_MMIO_STATUS, 3);
        let mut offered = 0;
        for select in [1, 0] {
            self.write(register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            offered = offered << 32 | u64::from(self.read(register::VIRTIO_MMIO_DEVICE_FEATURES));
        }
        let accepted = offered & features;
        for select in [0, 1] {
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            let half = u32::try_from(accepted >> (32 * select) & u64::from(u32::MAX)).unwrap();
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
        self.write(register::VIRTIO_MMIO_STATUS, 11);
        accepted
    }

    pub(crate) fn set_up_queue(&mut self, size: u32, [desc, avail, used]: [u64; 3]) {
        let halves = |addr: u64| [addr & 0xffff_ffff, addr >> 32].map(|half| u32::try_from(half).unwrap());
        self.write(register::VIRTIO_MMIO_QUEUE_SEL, 0);
        self.write(register::VIRTIO_MMIO_QUEUE_NUM, size);
        for (register, addr) in [
            (register::VIRTIO_MMIO_QUEUE_DESC_LOW, desc),
            (register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, avail),
            (register::VIRTIO_MMIO_QUEUE_USED_LOW, used),
        ] {
            self.write(register, halves(addr)[0]);
            self.write(register + 4, halves(addr)[1]);
        }
        self.write(register::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// All of a driver's start, with a queue of `size`.
    pub(crate) fn init(&mut self, features: u64, size: u16) {
        self.negotiate(features | feature::VERSION_1);
        self.queue_size = size;
        self.set_up_queue(size.into(), [DESC_TABLE, AVAIL_RING, USED_RING]);
        self.write(register::VIRTIO_MMIO_STATUS, STATUS_READY);
        assert_eq!(self.status(), STATUS_READY);
    }

    /// Puts `descriptors` into the table at `table`, from `index` on, as they are.
    pub(crate) fn put_descriptors(&self, table: u64, index: u16, descriptors: &[(u64, u32, u16, u16)]) {
        for (place, &(addr, len, flags, next)) in (u64::from(index)..).zip(descriptors) {
            let descriptor = Descriptor::new(addr, len, flags, next);
            self.ram.write_obj(descriptor, GuestAddress(table + place * 16)).unwrap();
        }
    }

    /// Makes a chain of buffers (address, length, whether the device writes) available, without telling the device.
    pub(crate) fn offer(&mut self, buffers: &[(u64, u32, bool)]) -> u16 {
        let (head, count) = (self.next_descriptor, u16::try_from(buffers.len()).unwrap());
        let head = if head + count > self.queue_size { 0 } else { head };
        let descriptors: Vec<_> = (1..=count)
            .zip(buffers)
            .map(|(number, &(addr, len, device_writes))| {
                let next = if number < count { NEXT } else { 0 };
                (addr, len, next | if device_writes { WRITE } else { 0 }, head + number)
            })
            .collect();
        self.put_descriptors(DESC_TABLE, head, &descriptors);
        self.next_descriptor = head + count;
        self.offer_head(head);
        head
    }

    /// Makes the chain that starts at descriptor `head` available.
    pub(crate) fn offer_head(&mut self, head: u16) {
        let place = AVAIL_RING + 4 + u64::from(self.avail_index % self.queue_size) * 2;
        self.ram.write_obj(head, GuestAddress(place)).unwrap();
        self.avail_index = self.avail_index.wrapping_add(1);
        self.set_avail_index(self.avail_index);
    }

    pub(crate) fn set_avail_index(&mut self, index: u16) {
        fence(Ordering::SeqCst);
        self.ram.store(index, GuestAddress(AVAIL_RING + 2), Ordering::SeqCst).unwrap();
    }

    /// Tells the device to look at its queue.
    pub(crate) fn notify(&mut self) {
        self.write(register::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }

    /// Waits until the loop has seen every event that there was when this was called.
    pub(crate) fn settle(&self) {
        settle(&self.device_loop.handle());
    }

    /// How many chains came back that were not taken yet.
    pub(crate) fn used_waiting(&self) -> u16 {
        let index: u16 = self.ram.load(GuestAddress(USED_RING + 2), Ordering::SeqCst).unwrap();
        index.wrapping_sub(self.used_index)
    }

    /// The next chain that came back: its head, and the bytes written.
    pub(crate) fn take_used(&mut self) -> (u32, u32) {
        wait_for("a used buffer", || (self.used_waiting() > 0).then_some(()));
        let place = USED_RING + 4 + u64::from(self.used_index % self.queue_size) * 8;
        self.used_index = self.used_index.wrapping_add(1);
        let [id, len]: [u32; 2] = [0, 4].map(|part| self.ram.read_obj(GuestAddress(place + part)).unwrap());
        (id, len)
    }

    pub(crate) fn bytes(&self, addr: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    pub(crate) fn put(&self, addr: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    /// Notifies and expects the device to stop and say so in every way it has.
    pub(crate) fn expect_device_stops(&mut self) {
        self.notify();
        wait_for("DEVICE_NEEDS_RESET", || (self.status() & STATUS_NEEDS_RESET != 0).then_some(()));
        self.settle();
        assert_eq!(self.read(register::VIRTIO_MMIO_INTERRUPT_STATUS) & 2, 2);
        assert!(self.line.read().is_ok());
        assert_eq!(lock(&self.device).device_errors().get(), 1);
    }
}
