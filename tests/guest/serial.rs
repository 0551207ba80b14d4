//! COM1, polled.

use core::fmt::{self, Write};

use crate::cpu::{in8, out8};

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const DATA_READY: u8 = 0x01;
const TRANSMITTER_EMPTY: u8 = 0x20;
/// What a 16550 takes once its transmitter is empty; each look at the status is an exit saved.
const FIFO_BYTES: usize = 16;

/// Prints one line, behind the prefix that tells the guest's words from anybody else's.
#[macro_export]
macro_rules! say {
    ($($arguments:tt)*) => { $crate::serial::print_line(format_args!($($arguments)*)) };
}

struct Com1;

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for chunk in text.as_bytes().chunks(FIFO_BYTES) {
            while in8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
                core::hint::spin_loop();
            }
            chunk.iter().for_each(|byte| out8(COM1, *byte));
        }
        Ok(())
    }
}

pub fn print_line(arguments: fmt::Arguments) {
    // Com1 never fails.
    let _ = Com1.write_fmt(format_args!("guest: {arguments}\n"));
}

/// Whether something was typed that was not read.
pub fn has_input() -> bool {
    in8(LINE_STATUS) & DATA_READY != 0
}

/// Reads up to the next end of line, which is not part of the result; what does not fit is dropped.
pub fn read_line(line: &mut [u8]) -> usize {
    let mut length = 0;
    loop {
        while in8(LINE_STATUS) & DATA_READY == 0 {
            core::hint::spin_loop();
        }
        match in8(COM1) {
            b'\n' | b'\r' => return length,
            byte if length < line.len() => {
                line[length] = byte;
                length += 1;
            }
            _ => {}
        }
    }
}
