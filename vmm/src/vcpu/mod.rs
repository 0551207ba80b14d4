//! A vCPU and its thread.
//!
//! ```text
//!   driver                      thread
//!   Resume ───────────────────▶ paused ──▶ running ─┐ KVM_RUN, exits to the buses
//!   Pause, kick ──────────────▶            ◀────────┘
//!          ◀── acknowledged ──  paused
//!   Stop, kick ───────────────▶ gone
//! ```
//!
//! A thread that has acknowledged a pause has finished the last access its guest made: the registers KVM gives then
//! are complete.
//!
//! Invariants:
//!
//! - A command is sent before its kick, and the thread takes back the kick before it looks for commands: none is lost.
//! - The thread holds no lock while it is in the guest.

mod exits;
mod kick;
mod lost;
mod metrics;
mod runner;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use crate::machine::message::Notifier;
pub use exits::{Buses, Ways};
pub use metrics::VcpuMetrics;

pub(crate) use kick::install_handler as install_kick_handler;
use kick::{Kickable, Kicker};
use runner::Runner;

/// How long a vCPU may take to acknowledge a command. In the guest it takes microseconds; this is for a thread that
/// waits for a device or a page.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait before a kick is repeated. One is enough, but for a signal that arrives between two instructions
/// of a system call of the thread's own, such as a write to a terminal.
const KICK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// What the driver asks of a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Pause,
    Resume,
    Stop,
}

/// An order and its number, which its acknowledgement repeats: one that was given up on may be acknowledged later.
#[derive(Debug, Clone, Copy)]
struct Command {
    number: u64,
    order: Order,
}

/// The thread did what the command of this number said.
#[derive(Debug)]
struct Acknowledged(u64);

/// Why a vCPU did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// Its thread could not be started.
    #[error("cannot start the thread of vCPU {index}")]
    Spawn {
        /// Which vCPU.
        index: u8,
        /// The host's answer.
        source: std::io::Error,
    },
    /// It did not answer in time.
    #[error("vCPU {index} does not stop: it waits for a device or for memory; look at the log for the cause")]
    Stuck {
        /// Which vCPU.
        index: u8,
    },
    /// Its thread is gone.
    #[error("the thread of vCPU {index} has ended")]
    Gone {
        /// Which vCPU.
        index: u8,
    },
}

/// The driver's end of a vCPU.
#[derive(Debug)]
pub struct Vcpu {
    index: u8,
    last_number: u64,
    commands: Sender<Command>,
    acknowledgements: Receiver<Acknowledged>,
    kicker: Arc<Kicker>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Starts a thread for vCPU `index`, paused. What its guest does is told to `notifier`.
    ///
    /// # Errors
    ///
    /// [`VcpuError::Spawn`] where the host gives no thread.
    pub fn spawn(
        index: u8,
        fd: VcpuFd,
        ways: Ways,
        metrics: VcpuMetrics,
        notifier: Notifier,
    ) -> Result<Self, VcpuError> {
        let (commands, inbox) = channel();
        let (outbox, acknowledgements) = channel();
        let (fd, kicker) = Kickable::new(fd);
        let Ways { buses, ram } = ways;
        let runner = Runner { index, fd, buses, ram, metrics, notifier, inbox, outbox };
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || runner.run())
            .map_err(|source| VcpuError::Spawn { index, source })?;
        Ok(Self { index, last_number: 0, commands, acknowledgements, kicker, thread: Some(thread) })
    }

    fn send(&mut self, order: Order) -> Result<(), VcpuError> {
        self.last_number += 1;
        let command = Command { number: self.last_number, order };
        self.commands.send(command).map_err(|_| VcpuError::Gone { index: self.index })?;
        self.kick();
        Ok(())
    }

    fn kick(&self) {
        if let Some(thread) = &self.thread {
            self.kicker.kick(thread);
        }
    }

    /// Waits until `deadline` for the acknowledgement of the last command, and kicks again where it does not come.
    fn wait(&self, deadline: Instant) -> Result<(), VcpuError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.acknowledgements.recv_timeout(left.min(KICK_AGAIN_AFTER)) {
                Ok(Acknowledged(number)) if number == self.last_number => return Ok(()),
                Ok(Acknowledged(_)) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(VcpuError::Gone { index: self.index }),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                    return Err(VcpuError::Stuck { index: self.index });
                }
                Err(RecvTimeoutError::Timeout) => self.kick(),
            }
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // The channel is gone first, so that a thread that was never told to stop sees it.
            let (closed, _) = channel();
            self.commands = closed;
            self.kicker.kick(&thread);
            if thread.join().is_err() {
                tracing::error!(vcpu = self.index, "the thread of a vCPU panicked");
            }
        }
    }
}

/// All vCPUs of a VM.
#[derive(Debug)]
pub struct Vcpus(pub Vec<Vcpu>);

impl Vcpus {
    /// Lets every vCPU run.
    ///
    /// # Errors
    ///
    /// [`VcpuError`] of the first that does not.
    pub fn resume(&mut self) -> Result<(), VcpuError> {
        self.command(Order::Resume)
    }

    /// Takes every vCPU out of the guest, and returns when all are out.
    ///
    /// # Errors
    ///
    /// [`VcpuError`] of the first that does not come out.
    pub fn pause(&mut self) -> Result<(), VcpuError> {
        self.command(Order::Pause)
    }

    /// Lets every vCPU run once it can, without waiting for it: what is left to do when a pause has failed.
    pub fn release(&mut self) {
        for vcpu in &mut self.0 {
            if let Err(error) = vcpu.send(Order::Resume) {
                tracing::error!(%error, "a vCPU cannot go on");
            }
        }
    }

    /// Ends every vCPU's thread.
    ///
    /// # Errors
    ///
    /// [`VcpuError`] of the first that is stuck. Dropping it would wait for it.
    pub fn stop(&mut self) -> Result<(), VcpuError> {
        self.command(Order::Stop)
    }

    fn command(&mut self, order: Order) -> Result<(), VcpuError> {
        // All are told before any is waited for, and none is left out because another is gone.
        let sent: Vec<_> = self.0.iter_mut().map(|vcpu| vcpu.send(order)).collect();
        let deadline = Instant::now() + ACKNOWLEDGE_TIMEOUT;
        let waited: Vec<_> = self.0.iter().map(|vcpu| vcpu.wait(deadline)).collect();
        sent.into_iter().chain(waited).collect()
    }
}
