//! A block driver that polls: it keeps requests in flight, takes back what the device has used, and queues the next.
//!
//! ```text
//!   slot 0..in_flight   descriptors 3s, 3s + 1, 3s + 2:   header ─▶ payload ─▶ status
//! ```

use core::sync::atomic::{Ordering, fence};

use crate::virtio::{Descriptor, Device, NEXT, QUEUE_SIZE, WRITE, rings, wait_until_used_beyond};
use crate::{cpu, say};

const ID_BLOCK: u32 = 2;
const SECTOR_BYTES: u64 = 512;
const STATUS_OK: u8 = 0;
/// VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY (linux/virtio_ring.h).
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u32 = 1;
const DESCRIPTORS_PER_SLOT: usize = 3;
/// How many requests fit into the queue at a time.
pub const SLOTS: u64 = (QUEUE_SIZE / DESCRIPTORS_PER_SLOT) as u64;
/// How much a request moves at most.
pub const REQUEST_KIB: u64 = 128;
/// RAM for payloads: SLOTS times REQUEST_KIB from 2 MiB up.
const BUFFER: u64 = 2 << 20;

#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

static mut HEADERS: [Header; SLOTS as usize] = [Header { kind: 0, reserved: 0, sector: 0 }; SLOTS as usize];
static mut STATUSES: [u8; SLOTS as usize] = [STATUS_OK; SLOTS as usize];

#[derive(Clone, Copy, PartialEq)]
pub enum Direction {
    Read,
    Write,
}

/// What to move between the disk and RAM.
pub struct Transfer {
    /// Where the device's registers are.
    pub base: u64,
    /// How much, from the start of the disk; at its end it begins anew.
    pub mib: u64,
    pub request_kib: u64,
    pub in_flight: u64,
    pub direction: Direction,
}

impl Transfer {
    pub fn run(&self) {
        assert!(self.request_kib <= REQUEST_KIB, "requests are of {REQUEST_KIB} KiB at most");
        assert!((1..=SLOTS).contains(&self.in_flight), "1 to {SLOTS} requests can be in flight");
        let device = Device { base: self.base };
        device.negotiate();
        assert!(device.read(crate::virtio::DEVICE_ID) == ID_BLOCK, "no block device at {:#x}", self.base);
        device.start();
        rings().avail_flags = NO_INTERRUPT;
        let start = cpu::cycles();
        let failed = Requests::of(self, &device).run();
        let verb = if self.direction == Direction::Read { "disk-read" } else { "disk-write" };
        let cycles = cpu::cycles() - start;
        say!("{verb} {} MiB, {failed} failed requests, in {cycles} cycles", self.mib);
    }
}

/// The requests of a transfer: how many there are, and how far they are.
struct Requests<'a> {
    device: &'a Device,
    direction: Direction,
    bytes: u64,
    in_flight: u64,
    /// How many requests reach the disk's end.
    per_disk: u64,
    total: u64,
    queued: u64,
    done: u64,
    failed: u64,
}

impl<'a> Requests<'a> {
    fn of(transfer: &Transfer, device: &'a Device) -> Self {
        let bytes = transfer.request_kib << 10;
        let per_disk = device.config() * SECTOR_BYTES / bytes;
        assert!(per_disk > 0, "the disk is smaller than a request");
        let total = (transfer.mib << 20) / bytes;
        let Transfer { direction, in_flight, .. } = *transfer;
        Self { device, direction, bytes, in_flight, per_disk, total, queued: 0, done: 0, failed: 0 }
    }

    /// Moves all, and says how many requests failed.
    fn run(mut self) -> u64 {
        for slot in 0..self.in_flight.min(self.total) {
            self.queue(slot);
        }
        self.publish();
        while self.done < self.total {
            let used = wait_until_used_beyond(self.done as u16);
            while self.done as u16 != used {
                let slot = self.take_back();
                if self.queued < self.total {
                    self.queue(slot);
                }
            }
            self.publish();
        }
        self.failed
    }

    /// Writes the next request to `slot`. The device does not see it before `publish`.
    fn queue(&mut self, slot: u64) {
        let read = self.direction == Direction::Read;
        let sector = self.queued % self.per_disk * (self.bytes / SECTOR_BYTES);
        let header = (&raw mut HEADERS).cast::<Header>().wrapping_add(slot as usize);
        let status = (&raw mut STATUSES).cast::<u8>().wrapping_add(slot as usize);
        // SAFETY: `slot` is less than SLOTS, and the device is not using this one.
        unsafe {
            header.write_volatile(Header { kind: u32::from(!read), reserved: 0, sector });
            status.write_volatile(!STATUS_OK);
        }
        let chain = [
            (header as u64, size_of::<Header>() as u64, NEXT),
            (BUFFER + slot * self.bytes, self.bytes, if read { NEXT | WRITE } else { NEXT }),
            (status as u64, 1, WRITE),
        ];
        let head = slot as usize * DESCRIPTORS_PER_SLOT;
        let rings = rings();
        for (index, (address, length, flags)) in (head..).zip(chain) {
            rings.descriptors[index] =
                Descriptor { address, length: length as u32, flags, next: index as u16 + 1 };
        }
        rings.avail[self.queued as usize % QUEUE_SIZE] = head as u16;
        self.queued += 1;
    }

    /// Shows the device what is queued.
    fn publish(&self) {
        let rings = rings();
        if rings.avail_index == self.queued as u16 {
            return;
        }
        fence(Ordering::SeqCst);
        rings.avail_index = self.queued as u16;
        fence(Ordering::SeqCst);
        // SAFETY: the device writes it, so it is read anew each time.
        if unsafe { (&raw const rings.used_flags).read_volatile() } & NO_NOTIFY == 0 {
            self.device.notify();
        }
    }

    /// Takes the next request back that the device has used, and returns its slot, which is free then.
    fn take_back(&mut self) -> u64 {
        let entry = &raw const rings().used[self.done as usize % QUEUE_SIZE][0];
        // SAFETY: an entry before the used index, which the device does not write again before it is told to.
        let slot = u64::from(unsafe { entry.read_volatile() }) / DESCRIPTORS_PER_SLOT as u64;
        assert!(slot < SLOTS, "the device used a chain that nobody queued");
        let status = (&raw const STATUSES).cast::<u8>().wrapping_add(slot as usize);
        // SAFETY: `slot` is less than SLOTS, and the device is done with it.
        self.failed += u64::from(unsafe { status.read_volatile() } != STATUS_OK);
        self.done += 1;
        slot
    }
}
