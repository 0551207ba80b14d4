//! The generation ID and the VMClock, found as a kernel finds them: through ACPI.

use core::sync::atomic::{Ordering, fence};

use crate::boot::BootInfo;
use crate::say;

/// Offsets in bytes (ACPI 6.5, tables 5.3, 5.7 and 5.9). The XSDT's first table is the FADT.
const RSDP_XSDT: u64 = 24;
const XSDT_FIRST: u64 = 36;
const FADT_X_DSDT: u64 = 140;
const TABLE_LENGTH: u64 = 4;
/// Offsets in bytes (Linux, include/uapi/linux/vmclock-abi.h).
const CLOCK_SEQUENCE: u64 = 0x0c;
const CLOCK_MARKER: u64 = 0x10;
const CLOCK_FLAGS: u64 = 0x18;
const CLOCK_GENERATION: u64 = 0x68;

/// What there is to say.
#[derive(Clone, Copy)]
struct Seen {
    id: u128,
    sequence: u32,
    marker: u64,
    generation: u64,
}

/// Says it, `count` times, each time when it has changed.
pub fn say(boot: &BootInfo, count: u64) {
    let dsdt = dsdt(boot);
    // Name (ADDR, Package () { low, high }): the package's length, two elements, a DWORD's prefix, and the DWORD.
    let id = number_after(dsdt, b"ADDR\x12", 3) as u64;
    // A Memory32Fixed descriptor: whether it may be written, and the base.
    let clock = number_after(after(dsdt, b"AMZNC10C"), b"\x86\x09\x00", 1) as u64;
    say!("generation at {id:#x}, clock at {clock:#x}, flags {:#x}", read::<u64>(clock + CLOCK_FLAGS));
    let mut last = None;
    for _ in 0..count {
        let seen = changed(id, clock, last);
        let Seen { id, sequence, marker, generation } = seen;
        say!("generation {id:032x}, sequence {sequence}, marker {marker}, counter {generation}");
        last = Some(seen);
    }
}

/// Waits until it is not what it was, and no change is under way.
fn changed(id: u64, clock: u64, last: Option<Seen>) -> Seen {
    loop {
        let sequence = read::<u32>(clock + CLOCK_SEQUENCE);
        fence(Ordering::Acquire);
        let seen = Seen {
            id: read(id),
            sequence,
            marker: read(clock + CLOCK_MARKER),
            generation: read(clock + CLOCK_GENERATION),
        };
        fence(Ordering::Acquire);
        let whole = sequence.is_multiple_of(2) && sequence == read::<u32>(clock + CLOCK_SEQUENCE);
        // The sequence count says that a change of the clock is whole, and the ID comes before it.
        if whole && last.is_none_or(|last| last.sequence != sequence) {
            return seen;
        }
        core::hint::spin_loop();
    }
}

fn dsdt(boot: &BootInfo) -> &'static [u8] {
    let xsdt: u64 = read(boot.rsdp() + RSDP_XSDT);
    let fadt: u64 = read(xsdt + XSDT_FIRST);
    let dsdt: u64 = read(fadt + FADT_X_DSDT);
    let length: u32 = read(dsdt + TABLE_LENGTH);
    // SAFETY: the table is so long, below 4 GiB and so mapped, and nobody writes to it.
    unsafe { core::slice::from_raw_parts(dsdt as *const u8, length as usize) }
}

/// What follows a mark.
fn after<'a>(bytes: &'a [u8], mark: &[u8]) -> &'a [u8] {
    let at = bytes.windows(mark.len()).position(|window| window == mark);
    &bytes[at.unwrap_or_else(|| panic!("no such mark in the DSDT")) + mark.len()..]
}

/// The 32 bits so many bytes behind a mark.
fn number_after(bytes: &[u8], mark: &[u8], skipped: usize) -> u32 {
    let bytes = &after(bytes, mark)[skipped..];
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn read<T: Copy>(address: u64) -> T {
    // SAFETY: all below 4 GiB is mapped, what is read are numbers, and the host may change them: it is volatile.
    unsafe { (address as *const T).read_volatile() }
}
