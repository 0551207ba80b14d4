//! Reads in flight: an io_uring, and a buffer for each.
//!
//! ```text
//!   free ── begin ──▶ in flight ── take_landed ──▶ landed ── bytes, then release ──▶ free
//!              ▲           │
//!              └── short ──┘     what is left is read on
//! ```
//!
//! Invariants:
//!
//! - There are as many slots as the rings have entries: neither can overflow.
//! - A buffer that the kernel writes to is not touched, moved or freed until its read has ended. Dropping waits for
//!   that; where it cannot, the buffers are leaked.
#![expect(unsafe_code, reason = "io_uring writes to buffers behind the compiler's back")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use rustix::event::{EventfdFlags, eventfd};

use crate::page::{PageRange, PageSize};
use crate::source::Priority;
use crate::source::buffer::{PageBuffer, bytes_of};

/// The number of a slot.
pub(super) type Slot = u16;

/// A read, and how far it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Read {
    /// The descriptor, which stays open until the read has ended.
    pub(super) fd: RawFd,
    /// What is read.
    pub(super) range: PageRange,
    /// Why.
    pub(super) priority: Priority,
    /// How many of its pages are read.
    pub(super) done: u64,
}

impl Read {
    /// What of it was read.
    pub(super) fn got(self) -> PageRange {
        self.range.split_at(self.done).0
    }

    /// What of it was not.
    pub(super) fn missing(self) -> PageRange {
        self.range.split_at(self.done).1
    }
}

/// How a read ended that did not get everything.
#[derive(Debug)]
pub(super) enum Stop {
    /// There was nothing more.
    Short,
    /// The host refused.
    Failed(io::Error),
}

#[derive(Debug)]
struct Place {
    buffer: PageBuffer,
    read: Option<Read>,
}

pub(super) struct Ring {
    ring: IoUring,
    completion: OwnedFd,
    places: Vec<Place>,
    free: Vec<Slot>,
    /// How many reads the kernel has, or will have with the next submission.
    in_flight: usize,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring of `slots` slots with buffers of `pages` pages.
    pub(super) fn new(slots: Slot, pages: u64) -> io::Result<Self> {
        let ring = IoUring::new(u32::from(slots))?;
        let completion = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_eventfd(completion.as_raw_fd())?;
        let places = (0..slots).map(|_| Place { buffer: PageBuffer::new(pages), read: None }).collect();
        Ok(Self { ring, completion, places, free: (0..slots).rev().collect(), in_flight: 0 })
    }

    /// What becomes readable when a read has ended.
    pub(super) fn completion(&self) -> BorrowedFd<'_> {
        self.completion.as_fd()
    }

    /// Has the completion event be news again. Whoever calls it takes all that has landed afterwards.
    pub(super) fn acknowledge(&self) {
        // It fails where there was no event.
        let _ = rustix::io::read(&self.completion, &mut [0; 8]);
    }

    pub(super) fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Begins a read; the caller has made sure that there is a free slot and that its buffer is as long.
    pub(super) fn begin(&mut self, read: Read) {
        let slot = self.free.pop().expect("the caller has made sure that there is room");
        self.push(slot, read);
    }

    fn push(&mut self, slot: Slot, read: Read) {
        let place = &mut self.places[usize::from(slot)];
        let into = &mut place.buffer.first_mut(read.range.count)[bytes_of(read.done)..];
        let len = u32::try_from(into.len()).expect("buffers are small");
        let entry = opcode::Read::new(types::Fd(read.fd), into.as_mut_ptr(), len)
            .offset(read.missing().start.offset())
            .build()
            .user_data(u64::from(slot));
        place.read = Some(read);
        // SAFETY: the buffer stays where it is, and nobody looks at it, until the kernel has given it back.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("no more is in flight than the ring has entries");
        self.in_flight += 1;
    }

    /// Has the kernel see what was begun. Says whether it has seen all of it.
    pub(super) fn submit(&mut self) -> io::Result<bool> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_passing(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Takes a read that has ended: its slot, and what stopped it where it did not get everything. One that was only
    /// short goes on at the next [`submit`](Self::submit).
    pub(super) fn take_landed(&mut self) -> Option<(Slot, Option<Stop>)> {
        loop {
            let entry = self.ring.completion().next()?;
            let slot = Slot::try_from(entry.user_data()).expect("a number we gave");
            self.in_flight -= 1;
            let place = &mut self.places[usize::from(slot)];
            let read = place.read.as_mut().expect("a read ends once");
            let Ok(bytes) = u64::try_from(entry.result()) else {
                return Some((slot, Some(Stop::Failed(io::Error::from_raw_os_error(-entry.result())))));
            };
            // Reading goes on at a page's boundary, which every disk can.
            let pages = bytes / PageSize::Base4K.bytes();
            read.done += pages;
            match (read.missing().is_empty(), pages) {
                (true, _) => return Some((slot, None)),
                (false, 0) => return Some((slot, Some(Stop::Short))),
                (false, _) => {
                    let read = *read;
                    self.push(slot, read);
                }
            }
        }
    }

    /// The read that has landed in `slot`, and the bytes that it got.
    pub(super) fn landed(&self, slot: Slot) -> (Read, &[u8]) {
        let place = &self.places[usize::from(slot)];
        let read = place.read.expect("it has landed and was not released");
        (read, place.buffer.first(read.done))
    }

    /// Gives the slot of a read that has landed back.
    pub(super) fn release(&mut self, slot: Slot) {
        self.places[usize::from(slot)].read = None;
        self.free.push(slot);
    }

    /// Waits for all that is in flight.
    fn drain(&mut self) {
        let mut retries = 0;
        while self.in_flight > 0 && retries < DRAIN_RETRIES_MAX {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The host is short of something for a moment.
                Err(error) if is_passing(&error) => {
                    retries += 1;
                    std::thread::sleep(DRAIN_RETRY);
                }
                Err(_) => return,
            }
            self.in_flight -= self.ring.completion().count().min(self.in_flight);
        }
    }
}

/// How often, and after how long, waiting for what is in flight is tried again where the host is short of something.
const DRAIN_RETRIES_MAX: u32 = 5000;
const DRAIN_RETRY: Duration = Duration::from_millis(1);

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.drain();
        if self.in_flight > 0 {
            std::mem::forget(std::mem::take(&mut self.places));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::page::PageIndex;

    #[test]
    fn draining_leaves_nothing_in_flight_whether_the_kernel_saw_it_or_not() {
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        let read = |start| {
            let range = PageRange { start: PageIndex(start), count: 4 };
            Read { fd: file.as_raw_fd(), range, priority: Priority::Demand, done: 0 }
        };
        let mut ring = Ring::new(8, 4).unwrap();
        (0..4).for_each(|start| ring.begin(read(start)));
        assert!(ring.submit().unwrap());
        (4..8).for_each(|start| ring.begin(read(start)));
        assert_eq!((ring.free_slots(), ring.in_flight), (0, 8));
        ring.drain();
        assert_eq!(ring.in_flight, 0);
    }

    #[test]
    fn a_slot_is_used_again_and_what_is_short_is_read_on_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("three");
        std::fs::write(&path, [3; 3 * 4096 + 5]).unwrap();
        let file = File::open(&path).unwrap();
        let range = PageRange { start: PageIndex(0), count: 4 };
        let mut ring = Ring::new(1, 4).unwrap();
        for _ in 0..3 {
            ring.begin(Read { fd: file.as_raw_fd(), range, priority: Priority::Demand, done: 0 });
            let (slot, stop) = loop {
                ring.submit().unwrap();
                if let Some(landed) = ring.take_landed() {
                    break landed;
                }
                std::thread::yield_now();
            };
            assert!(matches!(stop, Some(Stop::Short)));
            let (read, bytes) = ring.landed(slot);
            assert_eq!((read.done, bytes), (3, &[3; 3 * 4096][..]));
            ring.release(slot);
        }
    }
}
