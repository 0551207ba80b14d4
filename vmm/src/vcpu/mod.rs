//! A vCPU and its thread.
//!
//! ```text
//!   driver                      thread
//!   Resume ───────────────────▶ paused ──▶ running ─┐ KVM_RUN, exits to the buses
//!   Pause, kick ──────────────▶            ◀────────┘
//!          ◀── acknowledged ──  paused
//!   Save ─────────────────────▶ paused: reads its state
//!          ◀── state ─────────  paused
//!   Stop, kick ───────────────▶ gone
//! ```
//!
//! A thread that has acknowledged a pause has finished the last access its guest made: the registers KVM gives then
//! are complete. KVM ends an access at the next `KVM_RUN`, and only then looks at the flag that sends it back
//! (Documentation/virt/kvm/api.rst, "KVM_RUN"); so the thread pauses where that has returned `EINTR`, and nowhere else.
//! A guest that has ended is never entered again, so its last access stays open and it cannot be saved.
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

use crate::arch::host::state::{Extent, StateError, VcpuState};
use crate::machine::message::Notifier;
pub use exits::{Buses, Ways};
pub use metrics::VcpuMetrics;

pub(crate) use kick::install_handler as install_kick_handler;
use kick::{Kickable, Kicker};
use runner::{Runner, Stance};

/// How long a vCPU may take to acknowledge a command. In the guest it takes microseconds; this is for a thread that
/// waits for a device or a page.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait before a kick is repeated. One is enough, but for a signal that arrives between two instructions
/// of a system call of the thread's own, such as a write to a terminal.
const KICK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// What the driver asks of a vCPU.
#[derive(Debug, Clone)]
enum Order {
    Pause,
    Resume,
    /// Read all that KVM holds of it, so much.
    Save(Arc<Extent>),
    Stop,
}

/// An order and its number, which its acknowledgement repeats: one that was given up on may be acknowledged later.
#[derive(Debug, Clone)]
struct Command {
    number: u64,
    order: Order,
}

/// The thread did what the command of this number said, and has this to say.
#[derive(Debug)]
struct Acknowledged {
    number: u64,
    answer: Answer,
}

/// What a command gives.
#[derive(Debug)]
enum Answer {
    Done,
    Saved(Box<Result<VcpuState, StateError>>),
    /// It cannot be saved as it stands.
    NotPaused,
}

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
    /// Its state was asked for while it runs, or after its guest has ended.
    #[error(
        "vCPU {index} is not paused, so it cannot be saved: pause the VM first, and not after it has ended"
    )]
    NotPaused {
        /// Which vCPU.
        index: u8,
    },
    /// Its state could not be read.
    #[error("vCPU {index} cannot be saved")]
    Save {
        /// Which vCPU.
        index: u8,
        /// Why.
        source: StateError,
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
        let stance = Stance::Paused;
        let runner = Runner { index, fd, buses, ram, metrics, notifier, inbox, outbox, stance };
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
    fn wait(&self, deadline: Instant) -> Result<Answer, VcpuError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.acknowledgements.recv_timeout(left.min(KICK_AGAIN_AFTER)) {
                Ok(Acknowledged { number, answer }) if number == self.last_number => return Ok(answer),
                Ok(Acknowledged { .. }) => {}
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
        self.command(&Order::Resume).map(drop)
    }

    /// Takes every vCPU out of the guest, and returns when all are out.
    ///
    /// # Errors
    ///
    /// [`VcpuError`] of the first that does not come out.
    pub fn pause(&mut self) -> Result<(), VcpuError> {
        self.command(&Order::Pause).map(drop)
    }

    /// Lets every vCPU run once it can, without waiting for it: what is left to do when a pause has failed.
    pub fn release(&mut self) {
        for vcpu in &mut self.0 {
            if let Err(error) = vcpu.send(Order::Resume) {
                tracing::error!(%error, "a vCPU cannot go on");
            }
        }
    }

    /// Reads everything KVM holds of every vCPU, all of which are paused, in their order. `extent` is of their VM.
    ///
    /// # Errors
    ///
    /// [`VcpuError`] of the first that is not paused, does not answer, or of which KVM refuses something.
    pub fn save(&mut self, extent: &Arc<Extent>) -> Result<Vec<VcpuState>, VcpuError> {
        let answers = self.command(&Order::Save(Arc::clone(extent)))?;
        let saved = self.0.iter().zip(answers).map(|(&Vcpu { index, .. }, answer)| match answer {
            Answer::Saved(state) => state.map_err(|source| VcpuError::Save { index, source }),
            Answer::Done | Answer::NotPaused => Err(VcpuError::NotPaused { index }),
        });
        saved.collect()
    }

    /// Ends every vCPU's thread.
    ///
    /// # Errors
    ///
    /// [`VcpuError`] of the first that is stuck. Dropping it would wait for it.
    pub fn stop(&mut self) -> Result<(), VcpuError> {
        self.command(&Order::Stop).map(drop)
    }

    fn command(&mut self, order: &Order) -> Result<Vec<Answer>, VcpuError> {
        // All are told before any is waited for, and none is left out because another is gone.
        let sent: Vec<_> = self.0.iter_mut().map(|vcpu| vcpu.send(order.clone())).collect();
        let deadline = Instant::now() + ACKNOWLEDGE_TIMEOUT;
        let waited: Vec<_> = self.0.iter().map(|vcpu| vcpu.wait(deadline)).collect();
        sent.into_iter().collect::<Result<(), _>>()?;
        waited.into_iter().collect()
    }
}
