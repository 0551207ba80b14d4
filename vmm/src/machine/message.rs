//! What the driver is told, and by whom.

use std::sync::mpsc::Sender;

use api::{Fault, Reply, Request};
use tokio::sync::oneshot;

use crate::snapshot::save::SaveError;
use crate::snapshot::saved::Parent;

/// Something that the guest did, seen by a vCPU or a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent {
    /// It powered itself off.
    PowerOff,
    /// It restarted, which ends the process too: whoever started it decides whether to start it again.
    Reset,
    /// It reported that it cannot go on.
    Crashed {
        /// What it reported.
        cause: String,
    },
    /// A vCPU cannot go on.
    VcpuFailed {
        /// Which.
        index: u8,
        /// Why.
        cause: String,
    },
    /// A page of its memory cannot be had, so that it must not go on.
    MemoryFailed {
        /// Which, and why.
        cause: String,
    },
    /// The process that serves its memory has gone: it may have to wait, until another one takes over.
    HandlerGone {
        /// How, and what becomes of the guest.
        cause: String,
    },
}

/// A message to the driver.
#[derive(Debug)]
pub enum Message {
    /// A request of the API, and where its answer goes.
    Request(Box<Request>, oneshot::Sender<Result<Reply, Fault>>),
    /// Something the guest did.
    Guest(GuestEvent),
    /// A snapshot was written, or was not.
    Saved(Box<Result<Parent, SaveError>>),
    /// The user wants the process to end: a signal, or the console's escape.
    Quit,
}

impl Message {
    /// What came of a snapshot, where it is that.
    pub(super) fn into_saved(self) -> Option<Result<Parent, SaveError>> {
        match self {
            Self::Saved(saved) => Some(*saved),
            Self::Request(..) | Self::Guest(_) | Self::Quit => None,
        }
    }
}

/// The way to the driver, for threads that have something to tell.
#[derive(Debug, Clone)]
pub struct Notifier(Sender<Message>);

impl Notifier {
    /// One that leads to the receiver of `sender`.
    #[must_use]
    pub fn new(sender: Sender<Message>) -> Self {
        Self(sender)
    }

    /// Tells of something the guest did.
    pub fn guest(&self, event: GuestEvent) {
        self.send(Message::Guest(event));
    }

    /// Asks for the end of the process.
    pub fn quit(&self) {
        self.send(Message::Quit);
    }

    /// Hands a request over; where the driver has ended, the answer's sender is dropped with it.
    pub fn send(&self, message: Message) {
        if self.0.send(message).is_err() {
            tracing::debug!("the driver has ended");
        }
    }
}
