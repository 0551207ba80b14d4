//! How a machine comes to its end.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use crate::machine::message::GuestEvent;
use crate::machine::vm::Vm;

/// How long the parts of a machine that has stopped may take to go.
const DROP_TIMEOUT: Duration = Duration::from_secs(5);

/// How a machine came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered off or restarted.
    ByGuest,
    /// The user asked for it.
    ByUser,
    /// The guest could not go on.
    Failed(String),
    /// The guest could not go on, as a page of its memory could not be had.
    MemoryFailed(String),
}

impl Ending {
    /// The end that an event leads to, if it does.
    pub(super) fn by(event: GuestEvent) -> Option<Self> {
        match event {
            GuestEvent::PowerOff | GuestEvent::Reset => Some(Self::ByGuest),
            GuestEvent::Crashed { cause } => Some(Self::Failed(cause)),
            GuestEvent::MemoryFailed { cause } => Some(Self::MemoryFailed(cause)),
            GuestEvent::VcpuFailed { index, cause } => Some(Self::Failed(format!("vCPU {index}: {cause}"))),
            // It is in the log already. The guest waits, and goes on when another one takes over.
            GuestEvent::HandlerGone { .. } => None,
        }
    }

    /// Why the guest could not go on.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        match self {
            Self::Failed(cause) | Self::MemoryFailed(cause) => Some(cause),
            Self::ByGuest | Self::ByUser => None,
        }
    }
}

/// Gives up what a machine had. A source of its memory may hang in a read, and then the process ends without it.
pub(super) fn give_up(vm: Vm) {
    let (done, is_done) = channel();
    let ended = thread::Builder::new().name("end".to_owned()).spawn(move || {
        drop(vm);
        // Nobody waits for so long.
        let _ = done.send(());
    });
    if ended.is_ok() && is_done.recv_timeout(DROP_TIMEOUT).is_err() {
        tracing::error!("a source of guest memory does not come back; the process ends without it");
    }
}
