//! The 16550 serial port, in both directions.
//!
//! ```text
//!   vCPU ── THR ──► token bucket ──► buffer, 64 KiB ──► writer thread ──► terminal, file, pipe …
//!   vCPU ◄─ RBR ─── FIFO, 64 bytes ◄── SerialInput on the device loop ◄── terminal, pty, pipe …
//!            │                              ▲
//!            └── FIFO is empty: `room` ─────┘
//! ```
//!
//! A vCPU never waits for the outside. Output goes to a bounded buffer that a thread writes out, since a terminal
//! that is stopped, or a pipe that nobody reads, blocks its writer, and only a thread of its own can be blocked
//! without harm whatever the sink is. What does not fit is dropped and counted. Input is read only as far as the
//! guest's FIFO has room, so that the sender feels it when the guest is slow.
//!
//! Invariants:
//!
//! - A byte the guest wrote is in the buffer, written, or counted in `missed_write_count`.
//! - A byte read from the input is in the FIFO, or in the `inbox` before it: none is lost, and none overtakes.
//! - While the FIFO has no room the input is not watched, so it cannot wake the loop for nothing.

mod input;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{Error as UartError, Serial as Uart, SerialEvents, SerialState as UartState};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::interrupt::Interrupt;
use crate::limiter::{TokenBucket, TokenBucketConfig, TokenBucketState};
use crate::metrics::UartMetrics;
use crate::output::{Output, OutputCounters};
pub use input::SerialInput;

/// The version of [`SerialState`] that is written.
pub const SERIAL_STATE_VERSION: u32 = 1;

/// Why a serial port could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// The host refused one of its parts.
    #[error("cannot make {part} for the serial port")]
    Host {
        /// What was refused.
        part: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// The saved state is of a version that this program does not know.
    #[error(
        "the serial port was saved in version {found}, and this program knows up to {SERIAL_STATE_VERSION}"
    )]
    Version {
        /// The version found.
        found: u32,
    },
    /// The saved state is not one that a serial port can be in.
    #[error("the saved serial port has more input than fits")]
    State,
}

/// A serial port as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// [`SERIAL_STATE_VERSION`] when it was saved.
    pub version: u32,
    /// DLL and DLM.
    pub baud_divisor: [u8; 2],
    /// IER.
    pub interrupt_enable: u8,
    /// IIR.
    pub interrupt_identification: u8,
    /// LCR.
    pub line_control: u8,
    /// LSR.
    pub line_status: u8,
    /// MCR.
    pub modem_control: u8,
    /// MSR.
    pub modem_status: u8,
    /// SCR.
    pub scratch: u8,
    /// Bytes in the receive FIFO.
    pub fifo: Vec<u8>,
    /// Bytes that were read from the input and wait for the FIFO.
    pub inbox: Vec<u8>,
    /// The output's rate limiter.
    pub limiter: Option<TokenBucketState>,
}

/// The UART's interrupt line.
struct Line(Arc<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// The UART's events, counted.
struct Counting(UartMetrics);

impl SerialEvents for Counting {
    fn buffer_read(&self) {
        self.0.read_count.inc();
    }

    fn out_byte(&self) {
        self.0.write_count.inc();
    }

    fn tx_lost_byte(&self) {
        self.0.missed_write_count.inc();
    }

    fn in_buffer_empty(&self) {}
}

/// Where the UART writes: nowhere, or into the buffer as far as the limiter and the buffer's size let it.
struct LimitedOutput {
    output: Option<Output>,
    limiter: Option<TokenBucket>,
}

impl Write for LimitedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(output) = &self.output else { return Ok(bytes.len()) };
        let now = Instant::now();
        let tokens = u64::try_from(bytes.len()).expect("a usize is at most 64 bits");
        if let Some(limiter) = &mut self.limiter {
            if !limiter.wait(tokens, now).is_zero() {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            limiter.take(tokens, now);
        }
        if output.push(bytes) { Ok(bytes.len()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The serial port. Its input comes through a [`SerialInput`].
pub struct Serial {
    uart: Uart<Line, Counting, LimitedOutput>,
    fifo_bytes: usize,
    /// Bytes that the FIFO did not take: it does not while the guest has the port in loopback mode.
    inbox: VecDeque<u8>,
    /// Tells the input that there is room again.
    room: EventFd,
    /// Whether the input waits for `room`.
    input_waits: bool,
    metrics: UartMetrics,
}

impl std::fmt::Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serial").field("uart", &self.uart.state()).finish_non_exhaustive()
    }
}

impl Serial {
    /// The length of the device, in ports.
    pub const LEN: u64 = 8;

    /// A port that writes to `output`, or nowhere, at most as fast as `limit` says, and interrupts by `interrupt`.
    ///
    /// # Errors
    ///
    /// [`SerialError::Host`] when the host gives no thread or descriptor.
    pub fn new(
        interrupt: Arc<dyn Interrupt>,
        output: Option<Box<dyn Write + Send>>,
        limit: Option<TokenBucketConfig>,
        metrics: UartMetrics,
    ) -> Result<Self, SerialError> {
        let limiter = limit.and_then(|limit| TokenBucket::new(limit, Instant::now()));
        Self::build(&UartState::default(), VecDeque::new(), interrupt, output, limiter, metrics)
    }

    /// The port that `state` was saved from.
    ///
    /// # Errors
    ///
    /// [`SerialError`] when the state is of an unknown version or impossible, and as for [`new`](Self::new).
    pub fn restore(
        state: &SerialState,
        interrupt: Arc<dyn Interrupt>,
        output: Option<Box<dyn Write + Send>>,
        metrics: UartMetrics,
    ) -> Result<Self, SerialError> {
        if state.version != SERIAL_STATE_VERSION {
            return Err(SerialError::Version { found: state.version });
        }
        let [baud_divisor_low, baud_divisor_high] = state.baud_divisor;
        let uart = UartState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.fifo.clone(),
        };
        let limiter = state.limiter.and_then(|limiter| TokenBucket::restore(&limiter, Instant::now()));
        let serial =
            Self::build(&uart, state.inbox.iter().copied().collect(), interrupt, output, limiter, metrics)?;
        let fits = serial.inbox.len() <= serial.fifo_bytes;
        fits.then_some(serial).ok_or(SerialError::State)
    }

    fn build(
        uart: &UartState,
        inbox: VecDeque<u8>,
        interrupt: Arc<dyn Interrupt>,
        output: Option<Box<dyn Write + Send>>,
        limiter: Option<TokenBucket>,
        metrics: UartMetrics,
    ) -> Result<Self, SerialError> {
        let host = |part| move |source| SerialError::Host { part, source };
        let counters = OutputCounters {
            lost_bytes: metrics.missed_write_count.clone(),
            errors: metrics.error_count.clone(),
            flushes: metrics.flush_count.clone(),
        };
        let output = output.map(|sink| Output::new("serial-out", sink, counters)).transpose();
        let output = LimitedOutput { output: output.map_err(host("a writer thread"))?, limiter };
        let room = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("an eventfd"))?;
        let used_bytes = uart.in_buffer.len();
        let uart =
            Uart::from_state(uart, Line(interrupt), Counting(metrics.clone()), output).map_err(|error| {
                match error {
                    UartError::Trigger(source) => SerialError::Host { part: "an interrupt", source },
                    UartError::IOError(_) | UartError::FullFifo => SerialError::State,
                }
            })?;
        let fifo_bytes = uart.fifo_capacity() + used_bytes;
        Ok(Self { uart, fifo_bytes, inbox, room, input_waits: false, metrics })
    }

    /// The port as it is now. Output that is still in the buffer belongs to the host and is not part of it.
    pub fn save(&mut self) -> SerialState {
        let uart = self.uart.state();
        let limiter = self.uart.writer_mut().limiter.as_mut();
        SerialState {
            version: SERIAL_STATE_VERSION,
            baud_divisor: [uart.baud_divisor_low, uart.baud_divisor_high],
            interrupt_enable: uart.interrupt_enable,
            interrupt_identification: uart.interrupt_identification,
            line_control: uart.line_control,
            line_status: uart.line_status,
            modem_control: uart.modem_control,
            modem_status: uart.modem_status,
            scratch: uart.scratch,
            fifo: uart.in_buffer,
            inbox: self.inbox.iter().copied().collect(),
            limiter: limiter.map(|limiter| limiter.save(Instant::now())),
        }
    }

    /// Waits until all output is written, for at most `timeout`, and says whether it is.
    #[must_use]
    pub fn flush(&self, timeout: Duration) -> bool {
        self.uart.writer().output.as_ref().is_none_or(|output| output.flush(timeout))
    }

    /// How many bytes the port takes now. When it takes none, `room` will tell when it does.
    fn input_room(&mut self) -> usize {
        let room = if self.inbox.is_empty() { self.uart.fifo_capacity() } else { 0 };
        self.input_waits = room == 0;
        room
    }

    /// Takes input: no more than [`input_room`](Self::input_room) said.
    fn receive(&mut self, bytes: &[u8]) {
        self.inbox.extend(bytes);
        self.feed();
    }

    /// Moves input into the FIFO, as far as it takes it.
    fn feed(&mut self) {
        while !self.inbox.is_empty() && self.uart.fifo_capacity() > 0 {
            match self.uart.enqueue_raw_bytes(self.inbox.make_contiguous()) {
                // In loopback mode nothing from outside comes in.
                Ok(0) => return,
                Ok(taken) => drop(self.inbox.drain(..taken)),
                Err(error) => {
                    // The bytes are in the FIFO; the guest was not told, but will find them.
                    tracing::error!(%error, "cannot interrupt the guest for serial input");
                    self.metrics.error_count.inc();
                    return self.inbox.clear();
                }
            }
        }
    }

    /// To be called after each access of the guest: there may be room for input now.
    fn after_access(&mut self) {
        self.feed();
        let drained = self.inbox.is_empty() && self.uart.fifo_capacity() == self.fifo_bytes;
        if self.input_waits && drained {
            self.input_waits = false;
            if self.room.write(1).is_err() {
                self.metrics.error_count.inc();
            }
        }
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let (Ok(offset), [value]) = (u8::try_from(offset), &mut *data) else {
            self.metrics.missed_read_count.inc();
            return data.fill(0xff);
        };
        *value = self.uart.read(offset);
        self.after_access();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (Ok(offset), &[value]) = (u8::try_from(offset), data) else {
            self.metrics.missed_write_count.inc();
            return;
        };
        match self.uart.write(offset, value) {
            // A byte that was dropped has been counted.
            Ok(()) | Err(UartError::IOError(_)) => {}
            Err(UartError::Trigger(_) | UartError::FullFifo) => _ = self.metrics.error_count.inc(),
        }
        self.after_access();
    }
}

#[cfg(test)]
mod tests;
