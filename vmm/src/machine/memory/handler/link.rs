//! The socket to a handler, and the thread that tells the driver when the other end is closed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use memory::uffd::Registered;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::is_unregistered;
use crate::machine::message::{GuestEvent, Notifier};

/// How much of what a handler sends is read. None of it means anything; a handler that sends more waits for ever to do
/// so.
const NOISE_BYTES_MAX: usize = 1 << 20;
const READ_BYTES: usize = 4096;

/// The thread. Dropping it closes the socket.
#[derive(Debug)]
pub(super) struct Link {
    /// Readable when there is no need to watch any longer.
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    pub(super) fn watch(
        socket: OwnedFd,
        registered: &Arc<Registered>,
        notifier: Notifier,
    ) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (stopped, registered) = (Arc::clone(&stop), Arc::clone(registered));
        let watch = move || match wait_for_end(&socket, &stopped) {
            Ok(None) => {}
            Ok(Some(end)) => tell(end, &registered, &notifier),
            Err(error) => tracing::error!(%error, "nobody watches over the page-fault handler any more"),
        };
        let thread = thread::Builder::new().name("handler".to_owned()).spawn(watch)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).is_err() {
            // It would wait for ever, and whoever joins it with it.
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that watches over the page-fault handler panicked");
        }
    }
}

/// Waits until the handler is gone, and says how it went; nothing where it is not watched any longer.
fn wait_for_end(socket: &OwnedFd, stop: &OwnedFd) -> io::Result<Option<&'static str>> {
    let mut noise_bytes = 0;
    loop {
        let reads = noise_bytes < NOISE_BYTES_MAX;
        // The end is seen whether or not there is something to be read before it.
        let wanted = if reads { PollFlags::IN | PollFlags::RDHUP } else { PollFlags::RDHUP };
        let mut fds = [PollFd::new(socket, wanted), PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        if !fds[1].revents().is_empty() {
            return Ok(None);
        }
        if !reads {
            return Ok(Some("closed its socket, after it had sent what nobody asked for"));
        }
        match recv(socket, &mut [0_u8; READ_BYTES][..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Ok(Some("closed its socket")),
            Ok((_, bytes)) => noise_bytes += bytes,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(Some("closed its socket without reading what it was handed")),
            Err(error) => return Err(error.into()),
        }
        if noise_bytes >= NOISE_BYTES_MAX {
            tracing::warn!(noise_bytes, "the page-fault handler sends what nobody reads from now on");
        }
    }
}

fn tell(end: &str, registered: &Registered, notifier: &Notifier) {
    let since = if is_unregistered(registered) {
        "it had unregistered guest memory, so pages that it had not given are zero: load the snapshot again"
    } else {
        "the guest waits at the next page that is missing, until another handler takes over"
    };
    let cause = format!("the page-fault handler has {end}; {since}");
    tracing::error!(cause, "guest memory has no handler");
    notifier.guest(GuestEvent::HandlerGone { cause });
}
