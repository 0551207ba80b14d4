//! The engine that has many operations in flight, by io_uring.
//!
//! Invariants:
//!
//! - At most [`IN_FLIGHT_MAX`] operations are in flight, which neither ring can overflow with.
//! - What the kernel has (vectors, and the memory they point to) stays where it is until the operation has ended:
//!   in `slots`, which outlive a failed drain by being leaked.
//! - An operation that ends while the kernel is told of it makes no event. One that ends later does.
#![expect(unsafe_code, reason = "io_uring reads and writes guest memory behind the compiler's back")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Ended, Operation, Ticket};
use crate::virtio::block::BlockError;

/// How many operations one drive has in flight at most, as Firecracker does.
const IN_FLIGHT_MAX: u16 = 128;

#[derive(Debug)]
struct InFlight {
    operation: Operation,
    ticket: Ticket,
    /// The disk's descriptor, for what is left when the kernel did only a part.
    fd: types::Fd,
}

pub(in crate::virtio::block) struct Uring {
    ring: IoUring,
    completion: EventFd,
    /// By the number that the kernel gives back.
    slots: Vec<Option<InFlight>>,
    free: Vec<u16>,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl Uring {
    pub(super) fn new() -> Result<Self, BlockError> {
        let refused = |source| BlockError::NoIoUring { source };
        let ring = IoUring::new(u32::from(IN_FLIGHT_MAX)).map_err(refused)?;
        let completion = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let completion = completion.map_err(|source| BlockError::Host { part: "an eventfd", source })?;
        ring.submitter().register_eventfd(completion.as_raw_fd()).map_err(refused)?;
        let slots = (0..IN_FLIGHT_MAX).map(|_| None).collect();
        Ok(Self { ring, completion, slots, free: (0..IN_FLIGHT_MAX).rev().collect() })
    }

    pub(super) fn completion_event(&self) -> &EventFd {
        &self.completion
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn begin(&mut self, file: &File, operation: Operation, ticket: Ticket) {
        let slot = self.free.pop().expect("the caller has made sure that there is room");
        self.push(slot, InFlight { operation, ticket, fd: types::Fd(file.as_raw_fd()) });
    }

    fn push(&mut self, slot: u16, in_flight: InFlight) {
        let entry = entry_of(&in_flight).user_data(u64::from(slot));
        self.slots[usize::from(slot)] = Some(in_flight);
        // SAFETY: the entry points into `slots`, at vectors that stay there until the kernel has given them back,
        // and keep the guest's memory mapped.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("no more is in flight than the ring has entries");
    }

    pub(super) fn has_unsubmitted(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Has the kernel see what was begun. The caller then takes what has ended, until there is nothing more: what the
    /// host has in memory ends at once, and a round of the device loop would cost more than the operation did.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.ring.completion().disable_eventfd();
        let submitted = self.enter();
        self.ring.completion().enable_eventfd();
        // The kernel shows an operation's end, then looks whether to tell of it, with a barrier between (its
        // io_cqring_wake). With this one, an end that is not told of is one that the caller sees.
        fence(Ordering::SeqCst);
        submitted
    }

    fn enter(&self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }

    pub(super) fn has_ended(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Takes an operation that has ended. One of which only a part was done goes on at the next [`submit`](Self::submit).
    pub(super) fn take_ended(&mut self) -> Option<Ended> {
        loop {
            let entry = self.ring.completion().next()?;
            if let Some(ended) = self.end(entry.user_data(), entry.result()) {
                return Some(ended);
            }
        }
    }

    /// Ends the operation in `slot`, or goes on with it when only a part of it was done.
    fn end(&mut self, slot: u64, result: i32) -> Option<Ended> {
        let slot = u16::try_from(slot).ok().filter(|&slot| slot < IN_FLIGHT_MAX).expect("a number we gave");
        let mut in_flight = self.slots[usize::from(slot)].take().expect("an operation ends once");
        let moved = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        let result = match moved.and_then(|moved| in_flight.operation.progress(moved)) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.push(slot, in_flight);
                return None;
            }
            Err(error) => Err(error),
        };
        self.free.push(slot);
        Some(Ended { ticket: in_flight.ticket, result })
    }

    pub(super) fn drain(&mut self) -> Vec<Ended> {
        let mut ended: Vec<_> = std::iter::from_fn(|| self.take_ended()).collect();
        let mut retries = 0;
        while self.in_flight() > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The host is short of something for a moment; what is in flight must not be left behind for that.
                Err(error) if is_passing(&error) && retries < DRAIN_RETRIES_MAX => {
                    retries += 1;
                    std::thread::sleep(DRAIN_RETRY);
                }
                Err(error) => {
                    tracing::error!(%error, "cannot wait for the drive's operations");
                    break;
                }
            }
            ended.extend(std::iter::from_fn(|| self.take_ended()));
        }
        ended
    }
}

/// How often, and after how long, waiting for what is in flight is tried again where the host is short of something.
const DRAIN_RETRIES_MAX: u32 = 5000;
const DRAIN_RETRY: Duration = Duration::from_millis(1);

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}

/// The kernel's view of an operation.
fn entry_of(in_flight: &InFlight) -> squeue::Entry {
    let count = |vecs: &[libc::iovec]| u32::try_from(vecs.len()).expect("at most 1024 vectors");
    match &in_flight.operation {
        Operation::Read(vecs, offset) => {
            let vecs = vecs.rest();
            opcode::Readv::new(in_flight.fd, vecs.as_ptr(), count(vecs)).offset(*offset).build()
        }
        Operation::Write(vecs, offset) => {
            let vecs = vecs.rest();
            opcode::Writev::new(in_flight.fd, vecs.as_ptr(), count(vecs)).offset(*offset).build()
        }
        Operation::Flush => opcode::Fsync::new(in_flight.fd).flags(types::FsyncFlags::DATASYNC).build(),
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel may still write to memory that is about to be unmapped.
        drop(self.drain());
        if self.in_flight() > 0 {
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}
