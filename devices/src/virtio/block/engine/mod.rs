//! The engines: how an operation gets done.

mod sync;
mod uring;

use std::fs::File;
use std::io;

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::iovec::GuestIoVecs;
use super::request::Kind;
use super::{BlockError, IoEngine};
use uring::Uring;

/// Something to be done with a disk.
#[derive(Debug)]
pub(super) enum Operation {
    /// Fill the vectors from this offset, in bytes.
    Read(GuestIoVecs, u64),
    /// Write the vectors to this offset, in bytes.
    Write(GuestIoVecs, u64),
    /// Put what was written on the disk.
    Flush,
}

impl Operation {
    /// Notes that `bytes` of it are done, and says whether that is all. No progress means that the file has ended:
    /// somebody made it shorter.
    fn progress(&mut self, bytes: usize) -> io::Result<bool> {
        let (Self::Read(vecs, offset) | Self::Write(vecs, offset)) = self else { return Ok(true) };
        if bytes == 0 && !vecs.is_done() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        vecs.advance(bytes);
        *offset += u64::try_from(bytes).expect("a usize is at most 64 bits");
        Ok(vecs.is_done())
    }
}

/// What is needed to answer a request once its operation has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    pub(super) kind: Kind,
    pub(super) head: u16,
    pub(super) status: GuestAddress,
    /// The bytes of data.
    pub(super) bytes: u64,
}

/// An operation that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) ticket: Ticket,
    pub(super) result: io::Result<()>,
}

/// An engine. Only one of the variants has anything in flight.
#[derive(Debug)]
pub(super) enum Engine {
    Sync,
    Uring(Box<Uring>),
}

impl Engine {
    pub(super) fn new(kind: IoEngine) -> Result<Self, BlockError> {
        match kind {
            IoEngine::Sync => Ok(Self::Sync),
            IoEngine::Async => Ok(Self::Uring(Box::new(Uring::new()?))),
        }
    }

    pub(super) fn kind(&self) -> IoEngine {
        match self {
            Self::Sync => IoEngine::Sync,
            Self::Uring(_) => IoEngine::Async,
        }
    }

    /// What tells of operations that have ended, if they do so later.
    pub(super) fn completion_event(&self) -> Option<&EventFd> {
        match self {
            Self::Sync => None,
            Self::Uring(uring) => Some(uring.completion_event()),
        }
    }

    /// Whether one more operation can be begun.
    pub(super) fn has_room(&self) -> bool {
        match self {
            Self::Sync => true,
            Self::Uring(uring) => uring.has_room(),
        }
    }

    /// Begins an operation; there is room. One that ends at once is given back.
    pub(super) fn begin(&mut self, file: &File, operation: Operation, ticket: Ticket) -> Option<Ended> {
        match self {
            Self::Sync => Some(Ended { ticket, result: sync::run(file, operation) }),
            Self::Uring(uring) => {
                uring.begin(file, operation, ticket);
                None
            }
        }
    }

    /// Whether something was begun, or is to go on, that the kernel was not told of.
    pub(super) fn has_unsubmitted(&mut self) -> bool {
        match self {
            Self::Sync => false,
            Self::Uring(uring) => uring.has_unsubmitted(),
        }
    }

    /// Has the kernel see what was begun. What has ended by the time this returns is to be taken: no event tells of it.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        match self {
            Self::Sync => Ok(()),
            Self::Uring(uring) => uring.submit(),
        }
    }

    /// Whether there is an operation to take that has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        match self {
            Self::Sync => false,
            Self::Uring(uring) => uring.has_ended(),
        }
    }

    /// Takes an operation that has ended, if there is one.
    pub(super) fn take_ended(&mut self) -> Option<Ended> {
        match self {
            Self::Sync => None,
            Self::Uring(uring) => uring.take_ended(),
        }
    }

    /// Waits for all that is in flight, and takes it.
    pub(super) fn drain(&mut self) -> Vec<Ended> {
        match self {
            Self::Sync => Vec::new(),
            Self::Uring(uring) => uring.drain(),
        }
    }
}
