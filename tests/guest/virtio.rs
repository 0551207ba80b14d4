//! A virtio-mmio (version 2) driver with one queue, for the devices that a test needs without Linux.

use core::sync::atomic::{Ordering, fence};

use crate::say;

pub const MAGIC: u64 = 0x000;
pub const DEVICE_ID: u64 = 0x008;
pub const DRIVER_FEATURES: u64 = 0x020;
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
pub const QUEUE_SEL: u64 = 0x030;
pub const QUEUE_NUM_MAX: u64 = 0x034;
pub const QUEUE_NUM: u64 = 0x038;
pub const QUEUE_READY: u64 = 0x044;
pub const QUEUE_NOTIFY: u64 = 0x050;
pub const STATUS: u64 = 0x070;
pub const QUEUE_DESC: u64 = 0x080;
pub const QUEUE_DRIVER: u64 = 0x090;
pub const QUEUE_DEVICE: u64 = 0x0a0;
const CONFIG: u64 = 0x100;

pub const STATUS_DRIVER: u32 = 1 | 2;
pub const STATUS_FEATURES_OK: u32 = 8;
pub const STATUS_DRIVER_OK: u32 = 4;
pub const STATUS_NEEDS_RESET: u32 = 64;
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

const VIRTIO_MAGIC: u32 = 0x7472_6976;
pub const QUEUE_SIZE: usize = 64;
const ID_ENTROPY: u32 = 4;
/// How often a used ring is looked at before a request counts as lost: some seconds.
const POLLS: u64 = 2_000_000_000;

#[repr(C, align(16))]
#[derive(Clone, Copy)]
pub struct Descriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

#[repr(C, align(4096))]
pub struct Rings {
    pub descriptors: [Descriptor; QUEUE_SIZE],
    pub avail_flags: u16,
    pub avail_index: u16,
    pub avail: [u16; QUEUE_SIZE],
    used_event: u16,
    /// Flags in the low half, the index in the high half.
    pub used_flags: u32,
    /// Pairs of a chain's head and how many bytes were written to it.
    pub used: [[u32; 2]; QUEUE_SIZE],
    avail_event: u16,
}

const EMPTY_RINGS: Rings = Rings {
    descriptors: [Descriptor { address: 0, length: 0, flags: 0, next: 0 }; QUEUE_SIZE],
    avail_flags: 0,
    avail_index: 0,
    avail: [0; QUEUE_SIZE],
    used_event: 0,
    used_flags: 0,
    used: [[0; 2]; QUEUE_SIZE],
    avail_event: 0,
};
static mut RINGS: Rings = EMPTY_RINGS;
static mut ENTROPY: [u8; 64] = [0; 64];

/// The registers of the device at `base`. MMIO is always mapped, below 4 GiB.
pub struct Device {
    pub base: u64,
}

impl Device {
    pub fn read(&self, register: u64) -> u32 {
        // SAFETY: a register's address, which is no RAM of this program.
        unsafe { ((self.base + register) as *const u32).read_volatile() }
    }

    pub fn write(&self, register: u64, value: u32) {
        // SAFETY: as in `read`.
        unsafe { ((self.base + register) as *mut u32).write_volatile(value) }
    }

    pub fn write_address(&self, register: u64, address: u64) {
        self.write(register, address as u32);
        self.write(register + 4, (address >> 32) as u32);
    }

    /// Resets the device and accepts VIRTIO_F_VERSION_1 and nothing else.
    pub fn negotiate(&self) {
        assert!(self.read(MAGIC) == VIRTIO_MAGIC, "no virtio-mmio device at {:#x}", self.base);
        self.write(STATUS, 0);
        self.write(STATUS, STATUS_DRIVER);
        self.write(DRIVER_FEATURES_SEL, 0);
        self.write(DRIVER_FEATURES, 0);
        self.write(DRIVER_FEATURES_SEL, 1);
        self.write(DRIVER_FEATURES, 1);
        self.write(STATUS, STATUS_DRIVER | STATUS_FEATURES_OK);
        assert!(self.read(STATUS) & STATUS_FEATURES_OK != 0, "the device refuses VIRTIO_F_VERSION_1");
    }

    /// Sets queue 0 up on `rings()`, empty, and lets the device run.
    pub fn start(&self) {
        let rings = rings();
        *rings = EMPTY_RINGS;
        self.write(QUEUE_SEL, 0);
        assert!(self.read(QUEUE_NUM_MAX) as usize >= QUEUE_SIZE, "queue 0 is too short");
        self.write(QUEUE_NUM, QUEUE_SIZE as u32);
        self.write_address(QUEUE_DESC, &raw const rings.descriptors as u64);
        self.write_address(QUEUE_DRIVER, &raw const rings.avail_flags as u64);
        self.write_address(QUEUE_DEVICE, &raw const rings.used_flags as u64);
        self.write(QUEUE_READY, 1);
        self.write(STATUS, STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
    }

    /// The first eight bytes of the device's configuration.
    pub fn config(&self) -> u64 {
        u64::from(self.read(CONFIG)) | u64::from(self.read(CONFIG + 4)) << 32
    }

    pub fn notify(&self) {
        fence(Ordering::SeqCst);
        self.write(QUEUE_NOTIFY, 0);
    }
}

/// Queue 0's rings, of whichever device a command drives: commands run one after the other.
pub fn rings() -> &'static mut Rings {
    // SAFETY: there is one thread, and no caller keeps the reference beyond its command.
    unsafe { &mut *(&raw mut RINGS) }
}

/// What the device has used so far, modulo 2^16.
pub fn used_index() -> u16 {
    // SAFETY: the device writes it, so it is read anew each time.
    (unsafe { (&raw const rings().used_flags).read_volatile() } >> 16) as u16
}

/// Waits until the device has used something beyond `seen`, and returns its index.
pub fn wait_until_used_beyond(seen: u16) -> u16 {
    for _ in 0..POLLS {
        let index = used_index();
        if index != seen {
            fence(Ordering::SeqCst);
            return index;
        }
        core::hint::spin_loop();
    }
    panic!("the device did not answer");
}

/// Takes 64 bytes from the entropy device at `base` and says how many of them are not zero.
pub fn entropy(base: u64) {
    let device = Device { base };
    device.negotiate();
    assert!(device.read(DEVICE_ID) == ID_ENTROPY, "no entropy device at {base:#x}");
    device.start();
    let buffer = &raw mut ENTROPY;
    let rings = rings();
    rings.descriptors[0] = Descriptor { address: buffer as u64, length: 64, flags: WRITE, next: 0 };
    rings.avail[0] = 0;
    rings.avail_index = 1;
    device.notify();
    wait_until_used_beyond(0);
    // SAFETY: the device is done with the buffer.
    let nonzero = unsafe { buffer.read_volatile() }.iter().filter(|byte| **byte != 0).count();
    say!("rng {nonzero} of 64 bytes are not zero");
}
