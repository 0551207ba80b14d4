//! The bare-metal guest: a kernel without Linux that does what its command line says, in ring 3.
//!
//! ```text
//!   VMM ──▶ entry.s (ring 0, a few dozen instructions) ──▶ guest_main (ring 3, for good)
//!                                                             │
//!                       words of the command line, in turn ◀──┘   each answers on COM1, "guest: …"
//! ```
//!
//! | command | what it does |
//! |---|---|
//! | `hello` | says how it was entered and how much RAM it was told of |
//! | `fill MIB [SEED]` | writes a pattern that depends on address and seed over so much RAM, from 2 MiB up |
//! | `walk MIB [SEED]` | reads it back and compares every word |
//! | `touch MIB [STRIDE]` | reads a word of every STRIDEth page of so much RAM, and says how many TSC cycles that took |
//! | `touch-write MIB [STRIDE]` | writes one |
//! | `sample N` | writes N pages spread over all RAM and reads them back |
//! | `keep N [SEED]` | writes N pages spread over all RAM from 2 MiB up, and zeros over all others |
//! | `kept N [SEED]` | reads all of it back and compares every word |
//! | `work MIB [CYCLES]` | writes the last MIB of RAM round and round, checking every word, a page in so many cycles at least, until something is typed |
//! | `tick` | counts aloud for ever, about fifty times a second |
//! | `spin` | loops for ever without leaving the guest |
//! | `echo` | prints what arrives on COM1, line by line, until a line `quit` |
//! | `shell` | does what arrives on COM1, each line as if it were this command line, until a line `quit` |
//! | `port80 N` | writes N times to port 0x80 and says how many TSC cycles that took |
//! | `cpuid LEAF SUBLEAF` | says what CPUID answers |
//! | `generation N` | says its generation ID and VMClock, N times, each time when they have changed |
//! | `peek ADDR` | says the 32 bits at ADDR: RAM below 4 GiB, or a register |
//! | `mmio-junk ADDR N` | N reads and writes of nonsense, of every width, in the 4 KiB from ADDR |
//! | `virtio-abuse ADDR KIND` | drives the virtio-mmio device there with a malformed queue (see `abuse.rs`) |
//! | `virtio-churn ADDR N` | has the device there stop for a malformed queue, and resets it, N times |
//! | `rng ADDR` | takes 64 bytes from the entropy device there |
//! | `disk-read ADDR MIB [KIB [N]]` | reads so much from the start of the block device there, in requests of so many KiB, N of them in flight |
//! | `disk-write ADDR MIB [KIB [N]]` | writes as much |
//! | `exit`, `reset`, `i8042` | leaves by the sleep register, the reset register, the keyboard controller |
//! | `crash` | an undefined instruction, with nobody to handle it: a triple fault |
//!
//! Other words are ignored, so that what a VMM appends (`root=/dev/vda`) does no harm. After the last word it exits.
//!
//! Numbers are decimal, or hexadecimal after `0x`.

#![no_std]
#![no_main]

mod abuse;
mod boot;
mod cpu;
mod disk;
mod generation;
mod ram;
mod serial;
mod virtio;
mod work;

use boot::BootInfo;
use disk::{Direction, Transfer};
use ram::Access;

core::arch::global_asm!(include_str!("entry.s"), options(att_syntax));
#[cfg(pvh)]
core::arch::global_asm!(include_str!("pvh_note.s"), options(att_syntax));

/// The sleep control register of the ACPI tables: SLP_TYP 5, SLP_EN.
const SLEEP_CONTROL_PORT: u16 = 0x600;
const SLEEP_POWER_OFF: u8 = (5 << 2) | 0x20;
const RESET_PORT: u16 = 0x601;
const RESET_VALUE: u8 = 1;
const I8042_COMMAND_PORT: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;
/// A count for people, not a clock: some fifty ticks a second on processors of 2 to 4 GHz.
const CYCLES_PER_TICK: u64 = 50_000_000;

#[unsafe(no_mangle)]
extern "C" fn guest_main(boot_info_address: u64, entry_kind: u64) -> ! {
    // SAFETY: entry.s passes on what the loader gave: the address of the structure that `entry_kind` names.
    let boot = unsafe { BootInfo::at(boot_info_address, entry_kind == 1) };
    run_line(boot.command_line(), &boot);
    leave(SLEEP_CONTROL_PORT, SLEEP_POWER_OFF)
}

fn run_line(line: &'static [u8], boot: &BootInfo) {
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty()).peekable();
    while let Some(word) = words.next() {
        run(word, &mut words, boot);
    }
}

/// What is left of the command line.
trait Words: Iterator<Item = &'static [u8]> {
    fn number(&mut self) -> u64;
    fn number_or(&mut self, default: u64) -> u64;
}

impl<I: Iterator<Item = &'static [u8]>> Words for core::iter::Peekable<I> {
    fn number(&mut self) -> u64 {
        self.next()
            .and_then(parse_number)
            .unwrap_or_else(|| panic!("a number is missing on the command line"))
    }

    fn number_or(&mut self, default: u64) -> u64 {
        match self.peek().copied().and_then(parse_number) {
            Some(number) => {
                self.next();
                number
            }
            None => default,
        }
    }
}

fn parse_number(word: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(word).ok()?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn run(word: &[u8], words: &mut impl Words, boot: &BootInfo) {
    match word {
        b"hello" => hello(boot),
        b"fill" => ram::fill(boot, words.number(), words.number_or(0)),
        b"walk" => ram::walk(boot, words.number(), words.number_or(0)),
        b"touch" => ram::touch(boot, words.number(), words.number_or(1), Access::Read),
        b"touch-write" => ram::touch(boot, words.number(), words.number_or(1), Access::Write),
        b"sample" => ram::sample(boot, words.number()),
        b"keep" => ram::keep(boot, words.number(), words.number_or(0)),
        b"kept" => ram::kept(boot, words.number(), words.number_or(0)),
        b"work" => work::work(boot, words.number(), words.number_or(0)),
        b"tick" => tick(),
        b"spin" => spin(),
        b"echo" => echo(),
        b"shell" => shell(boot),
        b"port80" => port80(words.number()),
        b"cpuid" => cpu::say_cpuid(words.number() as u32, words.number() as u32),
        b"generation" => generation::say(boot, words.number()),
        b"peek" => ram::peek(words.number()),
        b"mmio-junk" => abuse::mmio_junk(words.number(), words.number()),
        b"virtio-abuse" => abuse::queue(words.number(), words.next().unwrap_or(b""), boot.ram_end()),
        b"virtio-churn" => abuse::churn(words.number(), words.number()),
        b"rng" => virtio::entropy(words.number()),
        b"disk-read" => transfer(words, Direction::Read),
        b"disk-write" => transfer(words, Direction::Write),
        b"exit" => leave(SLEEP_CONTROL_PORT, SLEEP_POWER_OFF),
        b"reset" => leave(RESET_PORT, RESET_VALUE),
        b"i8042" => leave(I8042_COMMAND_PORT, I8042_RESET),
        b"crash" => cpu::undefined_instruction(),
        _ => {}
    }
}

fn hello(boot: &BootInfo) {
    let entry = if boot.is_pvh() { "pvh" } else { "linux64" };
    say!("hello from ring {}, entered by {entry}, {} KiB of RAM", cpu::ring(), boot.ram_bytes() >> 10);
}

fn tick() -> ! {
    for count in 1u64.. {
        say!("tick {count}");
        let start = cpu::cycles();
        while cpu::cycles().wrapping_sub(start) < CYCLES_PER_TICK {
            core::hint::spin_loop();
        }
    }
    unreachable!("2^64 ticks do not pass")
}

fn spin() -> ! {
    say!("spinning");
    loop {
        core::hint::spin_loop();
    }
}

fn echo() {
    say!("echo");
    let mut line = [0u8; 256];
    loop {
        let length = serial::read_line(&mut line);
        if &line[..length] == b"quit" {
            return;
        }
        say!("echo {}", core::str::from_utf8(&line[..length]).unwrap_or("(not UTF-8)"));
    }
}

fn shell(boot: &BootInfo) {
    static mut LINE: [u8; 256] = [0; 256];
    say!("shell");
    loop {
        // SAFETY: one processor, and a line is done with before the next is read.
        let line: &'static mut [u8] = unsafe { &mut *(&raw mut LINE) };
        let length = serial::read_line(line);
        let line: &'static [u8] = &line[..length];
        if line == b"quit" {
            return;
        }
        run_line(line, boot);
        say!("done");
    }
}

fn port80(count: u64) {
    let start = cpu::cycles();
    for value in 0..count {
        cpu::out8(0x80, value as u8);
    }
    say!("port80 {count} writes in {} cycles", cpu::cycles() - start);
}

fn transfer(words: &mut impl Words, direction: Direction) {
    let (base, mib) = (words.number(), words.number());
    let (request_kib, in_flight) = (words.number_or(disk::REQUEST_KIB), words.number_or(disk::SLOTS));
    Transfer { base, mib, request_kib, in_flight, direction }.run();
}

/// Writes to a register that ends the machine, and complains if it did not.
fn leave(port: u16, value: u8) -> ! {
    cpu::out8(port, value);
    say!("still here after writing {value:#x} to port {port:#x}");
    spin()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    say!("panic: {}", info.message());
    leave(SLEEP_CONTROL_PORT, SLEEP_POWER_OFF)
}
