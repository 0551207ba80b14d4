//! Why memory could not be handed over.

use std::io;

use memory::ram::TooManyWatchers;
use memory::uffd::{OpenError, RegisterError, Stop};

use super::HAND_OVER_TIMEOUT;

/// Why memory could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// There is no userfaultfd.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The memory is none that a handler can serve.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// What is thrown away cannot be known.
    #[error(transparent)]
    Watchers(#[from] TooManyWatchers),
    /// Nobody listens there. Clients know the text.
    #[error("Failed to connect to UDS Unix stream: {0}")]
    Connect(#[source] io::Error),
    /// Somebody listens and does not accept.
    #[error(
        "Failed to connect to UDS Unix stream: as many wait there as may, and none was accepted within {} s: \
         see what the page-fault handler is doing",
        HAND_OVER_TIMEOUT.as_secs()
    )]
    NotAccepted,
    /// The message could not be sent.
    #[error("Failed to send the userfaultfd to the page-fault handler: {0}: see why it has gone")]
    Send(#[source] io::Error),
    /// Nobody could tell of the handler's end.
    #[error("cannot start a thread that watches over the page-fault handler")]
    Watch(#[source] io::Error),
    /// The last handler has unregistered guest memory.
    #[error(
        "the last page-fault handler has unregistered guest memory, and pages that it had not given are zero: \
         load the snapshot again"
    )]
    Unregistered,
    /// What is being thrown away does not come to rest.
    #[error(
        "guest memory was still being given back after {} s, and no handler can take over meanwhile: try again",
        HAND_OVER_TIMEOUT.as_secs()
    )]
    Unsettled,
    /// The events that wait cannot be read.
    #[error("cannot read what became of guest memory since the last page-fault handler")]
    Events(#[source] io::Error),
    /// What was thrown away cannot be made zero.
    #[error("cannot make zero what the guest has given back: {0}: free memory of the host, and try again")]
    Zero(#[source] Stop),
    /// Those who wait could not be told.
    #[error("cannot let the guest's faults be told again")]
    Wake(#[source] io::Error),
}
