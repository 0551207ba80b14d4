//! The thread that tells the driver of an engine's failure, and acts for it where it cannot hear.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use memory::fault::FaultEngine;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::failure_of;
use crate::machine::message::{GuestEvent, Notifier};
use crate::process::{self, EXIT_MEMORY};

/// How long a driver that loads a guest may take to get to the end of it without the page that is lost.
const LOAD_TIMEOUT: Duration = Duration::from_secs(2);

/// How often it is looked whether the engine's source has come back, and after how long it is given up: a disk that is
/// merely slow is waited for.
const CHECK_PERIOD: Duration = Duration::from_secs(5);
const SOURCE_LIMIT: Duration = Duration::from_secs(30);

/// What the thread and its owner share.
struct Shared {
    /// Readable when there is no need to watch any longer.
    stop: OwnedFd,
    is_driver_free: AtomicBool,
}

/// The thread.
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(engine: &Arc<FaultEngine>, notifier: Notifier) -> io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { stop, is_driver_free: AtomicBool::new(false) });
        let (engine, watched) = (Arc::clone(engine), Arc::clone(&shared));
        let watch = move || watch(&engine, &watched, &notifier);
        let thread = thread::Builder::new().name("memory".to_owned()).spawn(watch)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The driver touches no guest memory from now on, so that it can be told.
    pub(super) fn driver_is_free(&self) {
        self.shared.is_driver_free.store(true, Ordering::Release);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if rustix::io::write(&self.shared.stop, &1_u64.to_ne_bytes()).is_err() {
            // It would wait for ever, and whoever joins it with it.
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that watches over guest memory panicked");
        }
    }
}

fn watch(engine: &FaultEngine, shared: &Shared, notifier: &Notifier) {
    loop {
        match wait(&[engine.failure_fd(), shared.stop.as_fd()], Some(CHECK_PERIOD)) {
            Ok(true) => break,
            // An engine whose thread is within a call that hangs cannot say so.
            Ok(false) => engine.check(SOURCE_LIMIT),
            Err(error) => {
                tracing::error!(%error, "nobody watches over guest memory any more");
                break;
            }
        }
    }
    let Some(cause) = failure_of(engine) else { return };
    tracing::error!(cause, "guest memory has failed");
    notifier.guest(GuestEvent::MemoryFailed { cause: cause.clone() });
    let is_free = || shared.is_driver_free.load(Ordering::Acquire);
    if !is_free() && !wait(&[shared.stop.as_fd()], Some(LOAD_TIMEOUT)).unwrap_or(false) && !is_free() {
        // The driver waits for the page, and nothing has run yet that could be lost with the process.
        process::abandon(EXIT_MEMORY, &format!("the guest cannot be loaded: {cause}"));
    }
}

/// Waits until one of the descriptors is readable; says whether one was before the time was over.
fn wait(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<bool> {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    loop {
        match poll(&mut fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result? > 0),
        }
    }
}
