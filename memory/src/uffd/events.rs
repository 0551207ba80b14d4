//! What a userfaultfd tells: faults that wait, and removals.

use std::io;

use userfaultfd::Event as RawEvent;

use crate::page::{PageIndex, PageRange, PageSize};

/// How many events are read at once, at most.
const BATCH: usize = 64;

/// Why a thread waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// There is no page.
    Missing,
    /// There is one in the page cache, and it is not mapped.
    Minor,
    /// There is one, and it is write-protected.
    WriteProtected,
}

/// What the thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// It reads.
    Read,
    /// It writes. A fault that the kernel takes on behalf of a vCPU may say so of a read, too.
    Write,
}

/// A thread that waits for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Which page.
    pub page: PageIndex,
    /// Why.
    pub kind: FaultKind,
    /// What for.
    pub access: Access,
    /// Which thread, as the kernel numbers it; a worker of the kernel's where KVM fetches pages asynchronously.
    pub thread: i32,
}

/// Something that happened to registered memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A thread waits.
    Fault(Fault),
    /// Pages are being thrown away. The thread that does so goes on once this is read, and only then are they gone:
    /// whoever wants one later is to be given zeros.
    Removed(PageRange),
}

/// Room for a batch of events.
pub struct EventBuffer(userfaultfd::EventBuffer);

impl Default for EventBuffer {
    fn default() -> Self {
        Self(userfaultfd::EventBuffer::new(BATCH))
    }
}

impl std::fmt::Debug for EventBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventBuffer").finish_non_exhaustive()
    }
}

/// Reads what there is, up to a batch, and hands it to `sink` in its order; gives how many there were.
pub(super) fn read(
    uffd: &userfaultfd::Uffd,
    base: u64,
    buffer: &mut EventBuffer,
    sink: &mut dyn FnMut(Event),
) -> io::Result<usize> {
    let mut count = 0;
    for event in uffd.read_events(&mut buffer.0).map_err(into_io)? {
        count += 1;
        if let Some(event) = translate(event.map_err(into_io)?, base) {
            sink(event);
        }
    }
    Ok(count)
}

fn translate(event: RawEvent, base: u64) -> Option<Event> {
    let page =
        |address: *mut libc::c_void| PageIndex::at_offset((address.addr() as u64).saturating_sub(base));
    match event {
        RawEvent::Pagefault { kind, rw, addr, thread_id } => Some(Event::Fault(Fault {
            page: page(addr),
            kind: match kind {
                userfaultfd::FaultKind::Missing => FaultKind::Missing,
                userfaultfd::FaultKind::Minor => FaultKind::Minor,
                userfaultfd::FaultKind::WriteProtected => FaultKind::WriteProtected,
            },
            access: match rw {
                userfaultfd::ReadWrite::Read => Access::Read,
                userfaultfd::ReadWrite::Write => Access::Write,
            },
            thread: thread_id.as_raw(),
        })),
        RawEvent::Remove { start, end } => {
            let end_offset =
                (end.addr() as u64).saturating_sub(base).next_multiple_of(PageSize::Base4K.bytes());
            Some(Event::Removed(PageRange::between(page(start), PageIndex::at_offset(end_offset))))
        }
        // Asked for by nobody here, so the kernel does not send them.
        RawEvent::Fork { .. } | RawEvent::Remap { .. } | RawEvent::Unmap { .. } => None,
    }
}

/// The error number that the crate wraps.
pub(super) fn into_io(error: userfaultfd::Error) -> io::Error {
    match error {
        userfaultfd::Error::SystemError(errno) => io::Error::from_raw_os_error(errno as i32),
        other => io::Error::other(other),
    }
}
