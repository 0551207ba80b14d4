//! Guest memory that another process serves: it is handed a userfaultfd, as Firecracker hands one over, so that page
//! fault handlers that were written for Firecracker serve it unmodified.
//!
//! ```text
//!   GuestRam ──▶ userfaultfd, EVENT_REMOVE ──▶ all RAM registered MISSING
//!                     │
//!                     ├─ one message on a UNIX stream socket ──▶ the handler: reads events, gives pages by COPY
//!                     │    [{base_host_virt_addr, size, offset, page_size, page_size_kib}, …] and the descriptor
//!                     └─ kept here: who faults waits, whatever becomes of the handler
//!
//!   Link     "handler": tells the driver when the handler's end of the socket is closed
//!   Removals what the guest has given back: a handler that is gone took that knowledge with it
//! ```
//!
//! There is no acknowledgement and no second message, and the guest runs at once. What can be known of a handler:
//!
//! | what it does | what becomes of the guest | who learns of it |
//! |---|---|---|
//! | gives a page | goes on | |
//! | gives wrong pages | goes on with them | nobody: what a page should be, only the handler knows |
//! | never accepts, or never answers | waits at a page | nobody: it may only be slow |
//! | closes its socket, or dies | waits at a page that is missing | the driver: [`GuestEvent::HandlerGone`] |
//! | closes the userfaultfd | the same | nobody, as long as the socket is open |
//! | unregisters the memory | finds zeros in pages that are missing | the driver, with the handler's end; [`Handed::replace`] |
//! | poisons a page | gets a memory error when it is touched | the driver, by the vCPU |
//! | sends on the socket | goes on | the log, once it is much: what is sent is read and dropped, then not read |
//!
//! A handler that has closed its socket may still serve. Some do so on purpose; so its end is told, and ends nothing.
//!
//! Invariants:
//!
//! - The userfaultfd is open as long as [`Handed`] is: who faults is never given a zero page that no handler gave.
//! - A page that was thrown away is zero when it is touched again, also under a handler that has never been told.
//! - Nothing here touches guest memory, nor waits for a handler longer than [`HAND_OVER_TIMEOUT`].

mod error;
mod hand_over;
mod link;
mod removals;

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use memory::uffd::{self, Feature, Features, Modes, Registered, Stop, Wake};
use memory::{Backing, GuestRam};

#[cfg(doc)]
use crate::machine::message::GuestEvent;
use crate::machine::message::Notifier;
use link::Link;
use removals::Removals;

pub use error::HandOverError;

/// How long a handler may take to make room for a connection, or for the message.
pub const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// RAM whose faults a handler serves, and the way to that handler.
#[derive(Debug)]
pub struct Handed {
    /// Before the userfaultfd: the handler learns that the guest is gone by the end of its socket.
    link: Link,
    removals: Arc<Removals>,
    registered: Arc<Registered>,
    notifier: Notifier,
}

impl Handed {
    /// Hands the faults of all of `ram`, none of which has been touched, to the handler that listens at `socket`.
    /// `notifier` is told when the handler is gone.
    ///
    /// With `tracks_writes` the kernel notes who writes, which no handler sees: nobody is ever told of a write, and pages
    /// come by the same verbs. Those that are not placed with `UFFDIO_COPY_MODE_WP` count as written once.
    ///
    /// # Errors
    ///
    /// [`HandOverError`]; nothing is registered then.
    pub fn connect(
        ram: GuestRam,
        socket: &Path,
        tracks_writes: bool,
        notifier: Notifier,
    ) -> Result<Self, HandOverError> {
        // What else there is changes what handlers see, so only what they expect is asked for.
        let tracking = if tracks_writes { uffd::WRITE_TRACKING } else { Features::NONE };
        let uffd = uffd::open(tracking.with(Feature::EVENT_REMOVE))?;
        let removals = Arc::new(Removals::of(&ram));
        let weak = Arc::downgrade(&removals);
        ram.watch_discards(weak as Weak<_>)?;
        let modes = Modes { missing: true, write_protect: tracks_writes, minor: false };
        let registered = Arc::new(Registered::new(uffd, ram, modes)?);
        let stream = hand_over::connect(socket, HAND_OVER_TIMEOUT)?;
        hand_over::send(&stream, &registered)?;
        let link = Link::watch(stream, &registered, notifier.clone()).map_err(HandOverError::Watch)?;
        Ok(Self { link, removals, registered, notifier })
    }

    /// Hands the same userfaultfd to another handler, with the same message, and lets everyone who waits fault again:
    /// what the last one had read and not answered is asked once more. The last handler's socket is closed then.
    ///
    /// The guest may run or stand still. The last handler is to be gone: of what it is told from here on, the next one
    /// does not know. The next one knows the memory file and not what the guest has given back since, so those pages
    /// are made zero here.
    ///
    /// # Errors
    ///
    /// [`HandOverError`]; those who wait go on waiting then, and it can be tried again.
    pub fn replace(&mut self, socket: &Path) -> Result<(), HandOverError> {
        if is_unregistered(&self.registered) {
            return Err(HandOverError::Unregistered);
        }
        let stream = hand_over::connect(socket, HAND_OVER_TIMEOUT)?;
        let handed = self
            .removals
            .settle(&self.registered, HAND_OVER_TIMEOUT)
            .and_then(|()| hand_over::send(&stream, &self.registered));
        // Even where that failed: faults that were read here on the way are told to nobody else.
        self.registered.wake(self.registered.ram().pages()).map_err(HandOverError::Wake)?;
        handed?;
        let next = Link::watch(stream, &self.registered, self.notifier.clone());
        self.link = next.map_err(HandOverError::Watch)?;
        Ok(())
    }
}

/// Whether somebody has ended the registration of RAM, or of a part of it, and who faults there does not wait.
///
/// Told by the answer to a CONTINUE of all of it, which does nothing: private anonymous memory has no page cache, and
/// the kernel looks for the registration first (`mfill_atomic`, Linux 5.13 to 6.18).
fn is_unregistered(registered: &Registered) -> bool {
    let ram = registered.ram();
    let has_no_cache = matches!(ram.backing(), Backing::Anonymous { .. } | Backing::Hugetlb2M);
    has_no_cache && registered.map_cached(ram.pages(), false, Wake::Later).stop == Some(Stop::NotRegistered)
}
