//! The i8042 keyboard controller: enough of it to reset the machine, and to press Ctrl+Alt+Del.
//!
//! Port 0x60 (offset 0) is data, port 0x64 (offset 4) is status when read and command when written. There is a
//! keyboard, whose every command is acknowledged, and no mouse: probing for one is answered at once with a failure,
//! so that a kernel needs no `i8042.noaux` to boot without waiting half a second per question.

mod state;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crate::bus::BusDevice;
use crate::interrupt::Interrupt;
use crate::legacy::power::{PowerCallback, PowerEvent};
use crate::metrics::I8042Metrics;
pub use state::{I8042_STATE_VERSION, I8042RestoreError, I8042State};

const DATA_OFFSET: u64 = 0;
const COMMAND_OFFSET: u64 = 4;

/// Commands (IBM PS/2 Hardware Interface Technical Reference, keyboard controller).
mod command {
    pub(super) const READ_CONTROL: u8 = 0x20;
    pub(super) const WRITE_CONTROL: u8 = 0x60;
    pub(super) const TEST_MOUSE_PORT: u8 = 0xa9;
    pub(super) const SELF_TEST: u8 = 0xaa;
    pub(super) const TEST_KEYBOARD_PORT: u8 = 0xab;
    pub(super) const READ_OUTPUT_PORT: u8 = 0xd0;
    pub(super) const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub(super) const WRITE_MOUSE_OUTPUT: u8 = 0xd3;
    pub(super) const WRITE_MOUSE: u8 = 0xd4;
    pub(super) const PULSE_RESET: u8 = 0xfe;
}

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_KEYBOARD_UNLOCKED: u8 = 1 << 4;
const CONTROL_KEYBOARD_INTERRUPT: u8 = 1 << 0;
const CONTROL_SYSTEM: u8 = 1 << 2;
/// A20 open, and not in reset.
const OUTPUT_PORT_DEFAULT: u8 = 0b11;

const SELF_TEST_PASSED: u8 = 0x55;
const PORT_TEST_PASSED: u8 = 0x00;
const PORT_TEST_CLOCK_STUCK: u8 = 0x01;
const KEYBOARD_ACK: u8 = 0xfa;

/// Make codes of Ctrl, Alt, and Del (scan code set 2; the last one is an extended key).
const CTRL_ALT_DEL: [u8; 4] = [0x14, 0x11, 0xe0, 0x71];
const BUFFER_BYTES_MAX: usize = 16;

/// Why keys could not be pressed.
#[derive(Debug, thiserror::Error)]
pub enum I8042Error {
    /// The guest does not read its keyboard.
    #[error("the guest has not read the keys sent before: is its keyboard driver loaded?")]
    BufferFull,
    /// The guest could not be told.
    #[error("cannot raise the keyboard's interrupt")]
    Interrupt(#[source] io::Error),
}

/// The keyboard controller.
pub struct I8042 {
    notify: PowerCallback,
    interrupt: Arc<dyn Interrupt>,
    metrics: I8042Metrics,
    control: u8,
    output_port: u8,
    status: u8,
    /// A command that a byte of data belongs to.
    pending: Option<u8>,
    buffer: VecDeque<u8>,
}

impl std::fmt::Debug for I8042 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("I8042")
            .field("control", &self.control)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

impl I8042 {
    /// The length of the device, in ports from 0x60.
    pub const LEN: u64 = 5;

    /// A controller that tells `notify` of a reset, and has its keyboard on `interrupt`.
    #[must_use]
    pub fn new(notify: PowerCallback, interrupt: Arc<dyn Interrupt>, metrics: I8042Metrics) -> Self {
        Self {
            notify,
            interrupt,
            metrics,
            control: CONTROL_SYSTEM | CONTROL_KEYBOARD_INTERRUPT,
            output_port: OUTPUT_PORT_DEFAULT,
            status: STATUS_SYSTEM | STATUS_KEYBOARD_UNLOCKED,
            pending: None,
            buffer: VecDeque::with_capacity(BUFFER_BYTES_MAX),
        }
    }

    /// Presses Ctrl+Alt+Del. What the guest does then is up to it.
    ///
    /// # Errors
    ///
    /// [`I8042Error`] when the guest does not read its keyboard, or cannot be told.
    pub fn trigger_ctrl_alt_del(&mut self) -> Result<(), I8042Error> {
        if self.buffer.len() + CTRL_ALT_DEL.len() > BUFFER_BYTES_MAX {
            return Err(I8042Error::BufferFull);
        }
        self.buffer.extend(CTRL_ALT_DEL);
        self.raise().map_err(I8042Error::Interrupt)
    }

    fn raise(&self) -> io::Result<()> {
        if self.control & CONTROL_KEYBOARD_INTERRUPT == 0 {
            return Ok(());
        }
        self.interrupt.trigger()
    }

    /// Puts an answer where the guest reads it. It replaces what was there: the guest has asked anew.
    fn answer(&mut self, byte: u8) {
        self.buffer.clear();
        self.buffer.push_back(byte);
        if self.raise().is_err() {
            self.metrics.error_count.inc();
        }
    }

    fn read_data(&mut self) -> u8 {
        let byte = self.buffer.pop_front().unwrap_or(0);
        // The line is an edge per byte: say that there is another one.
        if !self.buffer.is_empty() && self.raise().is_err() {
            self.metrics.error_count.inc();
        }
        byte
    }

    fn write_command(&mut self, value: u8) {
        self.status |= STATUS_COMMAND;
        self.pending = None;
        match value {
            command::READ_CONTROL => self.answer(self.control),
            command::READ_OUTPUT_PORT => self.answer(self.output_port),
            command::SELF_TEST => self.answer(SELF_TEST_PASSED),
            command::TEST_KEYBOARD_PORT => self.answer(PORT_TEST_PASSED),
            command::TEST_MOUSE_PORT => self.answer(PORT_TEST_CLOCK_STUCK),
            command::PULSE_RESET => {
                self.metrics.reset_count.inc();
                (self.notify)(PowerEvent::Reset);
            }
            command::WRITE_CONTROL
            | command::WRITE_OUTPUT_PORT
            | command::WRITE_MOUSE_OUTPUT
            | command::WRITE_MOUSE => self.pending = Some(value),
            // Enabling and disabling of what is always there, or never.
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        self.status &= !STATUS_COMMAND;
        match self.pending.take() {
            Some(command::WRITE_CONTROL) => self.control = value,
            Some(command::WRITE_OUTPUT_PORT) => self.output_port = value,
            // Looped back, but as the keyboard's: a driver sees that there is no mouse.
            Some(command::WRITE_MOUSE_OUTPUT) => self.answer(value),
            // To a mouse that is not there.
            Some(_) => {}
            None => self.answer(KEYBOARD_ACK),
        }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match (offset, data.len()) {
            (DATA_OFFSET, 1) => self.read_data(),
            (COMMAND_OFFSET, 1) if self.buffer.is_empty() => self.status,
            (COMMAND_OFFSET, 1) => self.status | STATUS_OUTPUT_FULL,
            _ => {
                self.metrics.missed_read_count.inc();
                return data.fill(0xff);
            }
        };
        self.metrics.read_count.inc();
        data.fill(value);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (DATA_OFFSET, &[value]) => self.write_data(value),
            (COMMAND_OFFSET, &[value]) => self.write_command(value),
            _ => {
                self.metrics.missed_write_count.inc();
                return;
            }
        }
        self.metrics.write_count.inc();
    }
}

#[cfg(test)]
mod tests;
