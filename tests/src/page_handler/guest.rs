//! A guest's memory, seen through a userfaultfd that another process made.
//!
//! `unsafe` is here because placing a page takes addresses.
#![expect(unsafe_code, reason = "COPY takes addresses")]

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::os::unix::fs::FileExt;
use std::ptr;

use userfaultfd::{Error, Event, EventBuffer, Uffd};

use super::receive::{Mapping, Received};

const EVENTS_AT_ONCE: usize = 64;

/// What became of a fault.
pub(super) enum Answer {
    /// The page was given from the memory file.
    Page,
    /// Zeros were given.
    Zero,
    /// A removal has to be read before.
    Later,
    /// There is nothing to be done: the page is there, or the guest is gone.
    Nothing,
}

/// The memory, and what it is served from.
pub(super) struct Guest<'a> {
    uffd: Uffd,
    mappings: Vec<Mapping>,
    memory: &'a File,
    /// Addresses of pages that the guest has given back.
    removed: HashSet<u64>,
    events: EventBuffer,
}

impl<'a> Guest<'a> {
    pub(super) fn new(received: Received, memory: &'a File) -> Self {
        // SAFETY: the descriptor was received, and is given up by its owner.
        let uffd = unsafe { Uffd::from_raw_fd(received.uffd.into_raw_fd()) };
        let events = EventBuffer::new(EVENTS_AT_ONCE);
        Self { uffd, mappings: received.mappings, memory, removed: HashSet::new(), events }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.uffd.as_raw_fd()) }
    }

    /// Reads what there is, puts the faults behind `waiting`, and says how many removals there were.
    pub(super) fn read_events(&mut self, waiting: &mut VecDeque<u64>) -> io::Result<u64> {
        let mut removals = Vec::new();
        for event in self.uffd.read_events(&mut self.events).map_err(io::Error::other)? {
            match event.map_err(io::Error::other)? {
                Event::Pagefault { addr, .. } => waiting.push_back(addr.addr() as u64),
                Event::Remove { start, end } => removals.push(start.addr() as u64..end.addr() as u64),
                other => return Err(io::Error::other(format!("an event that nobody asked for: {other:?}"))),
            }
        }
        for range in &removals {
            let page_size = self.mapping_of(range.start)?.page_size;
            self.removed.extend(range.clone().step_by(to_usize(page_size)));
        }
        Ok(removals.len() as u64)
    }

    /// Gives the page that `address` is in.
    pub(super) fn give(&self, address: u64, is_wrong: bool) -> io::Result<Answer> {
        let mapping = self.mapping_of(address)?;
        let start = address - address % mapping.page_size;
        let mut bytes = vec![0; to_usize(mapping.page_size)];
        let is_removed = self.removed.contains(&start);
        if !is_removed {
            self.memory.read_exact_at(&mut bytes, mapping.offset + (start - mapping.base))?;
        }
        if is_wrong {
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
        }
        let target = ptr::without_provenance_mut(to_usize(start));
        // SAFETY: the source is a vector of that length, and the target is memory of a guest, which lives with that.
        match unsafe { self.uffd.copy(bytes.as_ptr().cast(), target, bytes.len(), true) } {
            Ok(_) if is_removed => Ok(Answer::Zero),
            Ok(_) => Ok(Answer::Page),
            Err(Error::PartiallyCopied(_)) => Ok(Answer::Later),
            Err(Error::CopyFailed(errno)) if errno as i32 == libc::EEXIST => {
                self.uffd.wake(target, bytes.len()).map_err(io::Error::other)?;
                Ok(Answer::Nothing)
            }
            Err(Error::CopyFailed(errno)) if errno as i32 == libc::ESRCH => Ok(Answer::Nothing),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Ends the registration of all of it.
    pub(super) fn unregister(&self) -> io::Result<()> {
        for mapping in &self.mappings {
            let start = ptr::without_provenance_mut(to_usize(mapping.base));
            self.uffd.unregister(start, to_usize(mapping.size)).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn mapping_of(&self, address: u64) -> io::Result<&Mapping> {
        let has = |mapping: &&Mapping| (mapping.base..mapping.base + mapping.size).contains(&address);
        let outside = || io::Error::other(format!("an event at {address:#x}, which is no guest memory"));
        self.mappings.iter().find(has).ok_or_else(outside)
    }
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("addresses and sizes of a process fit a pointer")
}
