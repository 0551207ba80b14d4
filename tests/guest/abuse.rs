//! What a hostile driver does: nonsense in registers, and queues that no correct driver makes.

use crate::say;
use crate::virtio::{
    Descriptor, Device, INDIRECT, NEXT, QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_NUM, QUEUE_READY,
    QUEUE_SEL, QUEUE_SIZE, STATUS, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK, STATUS_NEEDS_RESET,
    WRITE, rings, used_index,
};

const WINDOW_BYTES: u64 = 4096;
/// Long enough for a device's thread to take a notification in: a few milliseconds.
const POLLS_AFTER_NOTIFY: u64 = 10_000_000;
const MIB: u64 = 1 << 20;

/// `count` reads and writes of pseudo-random values and widths, aligned and not, in the 4 KiB from `base`.
pub fn mmio_junk(base: u64, count: u64) {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..count {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let (width, value) = (1 << (random >> 60 & 3), random.rotate_left(24));
        access(base + (random >> 8) % (WINDOW_BYTES - width), width, value, random & 1 == 0);
    }
    say!("mmio-junk {count} accesses at {base:#x}");
}

fn access(address: u64, width: u64, value: u64, write: bool) {
    // SAFETY: MMIO, and no RAM of this program. An access that is not aligned is what is wanted, so the
    // instructions are spelled out: Rust's volatile accesses must be aligned.
    unsafe {
        use core::arch::asm;
        match (width, write) {
            (1, true) => asm!("mov byte ptr [{}], {}", in(reg) address, in(reg_byte) value as u8),
            (2, true) => asm!("mov word ptr [{}], {:x}", in(reg) address, in(reg) value),
            (4, true) => asm!("mov dword ptr [{}], {:e}", in(reg) address, in(reg) value),
            (_, true) => asm!("mov qword ptr [{}], {}", in(reg) address, in(reg) value),
            (1, false) => asm!("mov {}, byte ptr [{}]", out(reg_byte) _, in(reg) address),
            (2, false) => asm!("mov {:x}, word ptr [{}]", out(reg) _, in(reg) address),
            (4, false) => asm!("mov {:e}, dword ptr [{}]", out(reg) _, in(reg) address),
            (_, false) => asm!("mov {}, qword ptr [{}]", out(reg) _, in(reg) address),
        }
    }
}

/// Starts queue 0 of the device at `base`, makes one thing of it wrong, notifies, and says how the device took it.
///
/// | kind | what is wrong |
/// |---|---|
/// | `loop` | two descriptors name each other as next |
/// | `self` | a descriptor names itself as next |
/// | `endless` | a chain through the whole table that goes on past its end |
/// | `past-ram` | a buffer behind the end of RAM |
/// | `length` | a buffer in RAM, of 4 GiB less one |
/// | `wrap` | a buffer whose end is past 2^64 |
/// | `indirect-past` | an indirect table behind the end of RAM |
/// | `indirect-nested` | an indirect table that holds an indirect descriptor |
/// | `head` | an available head that is no index of the table |
/// | `avail-jump` | an available index that is further ahead than the queue is long |
/// | `rings-past` | rings behind the end of RAM |
/// | `size` | a queue size that is no power of two, and past the maximum |
/// | `not-ready` | a notification for a queue that was never set up |
pub fn queue(base: u64, kind: &[u8], ram_end: u64) {
    let device = Device { base };
    device.negotiate();
    match kind {
        b"rings-past" => start_past_ram(&device, ram_end),
        b"size" => start_with_wrong_size(&device),
        b"not-ready" => device.write(STATUS, STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK),
        _ => device.start(),
    }
    if kind == b"avail-jump" {
        rings().avail_index = QUEUE_SIZE as u16 + 1000;
    } else {
        publish(kind, ram_end);
    }
    device.notify();
    for _ in 0..POLLS_AFTER_NOTIFY {
        core::hint::spin_loop();
    }
    let kind = core::str::from_utf8(kind).unwrap_or("(not UTF-8)");
    say!("virtio-abuse {kind}: status {:#x}, {} used", device.read(STATUS), used_index());
}

/// Has the device at `base` stop for a malformed queue and brings it back, `count` times, as fast as it goes.
pub fn churn(base: u64, count: u64) {
    let device = Device { base };
    for _ in 0..count {
        device.negotiate();
        device.start();
        publish(b"loop", 0);
        device.notify();
        while device.read(STATUS) & STATUS_NEEDS_RESET == 0 {
            core::hint::spin_loop();
        }
    }
    say!("virtio-churn {count} times at {base:#x}");
}

fn publish(kind: &[u8], ram_end: u64) {
    let rings = rings();
    malform(&mut rings.descriptors, kind, ram_end);
    rings.avail[0] = if kind == b"head" { 0xfffe } else { 0 };
    rings.avail_index = 1;
}

fn malform(table: &mut [Descriptor; QUEUE_SIZE], kind: &[u8], ram_end: u64) {
    let descriptor = |address, length, flags, next| Descriptor { address, length, flags, next };
    table[0] = descriptor(2 * MIB, 16, NEXT, 1);
    table[1] = descriptor(3 * MIB, 4096, NEXT | WRITE, 2);
    table[2] = descriptor(2 * MIB + 16, 1, WRITE, 0);
    match kind {
        b"loop" => table[1] = descriptor(3 * MIB, 4096, NEXT, 0),
        b"self" => table[0].next = 0,
        b"endless" => {
            for (index, entry) in table.iter_mut().enumerate() {
                *entry = descriptor(2 * MIB, 16, NEXT, index as u16 + 1);
            }
        }
        b"past-ram" => table[1].address = ram_end + MIB,
        b"length" => table[1].length = u32::MAX,
        b"wrap" => table[1].address = u64::MAX - 100,
        b"indirect-past" => table[0] = descriptor(ram_end + MIB, 64, INDIRECT, 0),
        b"indirect-nested" => {
            table[8] = descriptor(&raw const table[9] as u64, 32, INDIRECT, 0);
            table[0] = descriptor(&raw const table[8] as u64, 32, INDIRECT, 0);
        }
        _ => {}
    }
}

fn start_past_ram(device: &Device, ram_end: u64) {
    device.write(QUEUE_SEL, 0);
    device.write(QUEUE_NUM, QUEUE_SIZE as u32);
    for (register, offset) in [(QUEUE_DESC, MIB), (QUEUE_DRIVER, 2 * MIB), (QUEUE_DEVICE, 3 * MIB)] {
        device.write_address(register, ram_end + offset);
    }
    device.write(QUEUE_READY, 1);
    device.write(STATUS, STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
}

fn start_with_wrong_size(device: &Device) {
    device.write(QUEUE_SEL, 0);
    device.write(QUEUE_NUM, 3);
    device.write(QUEUE_READY, 1);
    device.write(QUEUE_NUM, u32::MAX);
    device.write(STATUS, STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
}
