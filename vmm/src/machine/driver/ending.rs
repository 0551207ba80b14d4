//! How a machine comes to its end.

use crate::machine::message::GuestEvent;

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
    /// The end that a guest's own doing leads to.
    pub(super) fn by(event: GuestEvent) -> Self {
        match event {
            GuestEvent::PowerOff | GuestEvent::Reset => Self::ByGuest,
            GuestEvent::Crashed { cause } => Self::Failed(cause),
            GuestEvent::MemoryFailed { cause } => Self::MemoryFailed(cause),
            GuestEvent::VcpuFailed { index, cause } => Self::Failed(format!("vCPU {index}: {cause}")),
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
