//! What an engine is told to do, by a message and a descriptor that wakes it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::event::{EventfdFlags, eventfd};

use super::write::WriteObserver;
use crate::page::PageRange;
use crate::uffd::Stop;

/// What is asked of the fault thread.
pub(super) enum Order {
    /// Fetch pages that somebody may want soon.
    Prefetch(PageRange),
    /// Protect all memory, and ask the observer before writes from now on.
    Protect(Box<dyn WriteObserver>, Sender<Result<(), Stop>>),
    /// End protecting; gives the observer back.
    Unprotect(Sender<Option<Box<dyn WriteObserver>>>),
    /// Let pages be written.
    Allow(PageRange),
    /// End, and leave all who wait to the next.
    Stop,
}

/// The sending end.
#[derive(Debug)]
pub(super) struct Orders {
    sender: Sender<Order>,
    wake: OwnedFd,
}

impl Orders {
    /// Says whether somebody is there to hear.
    pub(super) fn send(&self, order: Order) -> bool {
        let is_heard = self.sender.send(order).is_ok();
        // A counter that is full wakes the thread all the same.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        is_heard
    }
}

/// The receiving end.
#[derive(Debug)]
pub(super) struct Inbox {
    receiver: Receiver<Order>,
    wake: OwnedFd,
}

impl Inbox {
    /// An order, if there is one.
    pub(super) fn next(&self) -> Option<Order> {
        self.receiver.try_recv().ok()
    }

    /// To be called before orders are looked for, or the next wake could be lost.
    pub(super) fn clear(&self) {
        // Empty is as good.
        let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Both ends.
pub(super) fn orders() -> io::Result<(Orders, Inbox)> {
    let (sender, receiver) = channel();
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let woken = wake.try_clone()?;
    Ok((Orders { sender, wake }, Inbox { receiver, wake: woken }))
}
