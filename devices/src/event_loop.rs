//! The thread on which queues, files and timers are served.
//!
//! A [`DeviceLoop`] owns an event manager on a thread of its own; [`LoopHandle`]s to it are cheap and reach it from
//! any thread. Subscribers are shared, so that a vCPU or the VMM can lock a device while the loop is not in it.
//!
//! Rules for subscribers:
//!
//! - Register a descriptor once, and deregister it before it is closed: a closed descriptor's number comes back as
//!   another file.
//! - A descriptor at its end, or hung up, stays readable for ever: deregister it.
//! - Do a bounded amount of work per event, then make yourself readable again: others wait on the same thread.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use event_manager::{EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps};

/// Something with descriptors that a loop watches.
pub type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// How long [`LoopHandle::add`], [`LoopHandle::remove`] and [`DeviceLoop::stop`] wait for the loop's thread.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a loop did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The host gave no thread.
    #[error("cannot start the device thread `{name}`")]
    Spawn {
        /// The thread's name.
        name: String,
        /// The host's answer.
        source: io::Error,
    },
    /// The event manager refused.
    #[error("the device thread cannot watch its events")]
    Events(#[from] event_manager::Error),
    /// The thread has ended.
    #[error("the device thread has ended")]
    Ended,
    /// The thread is busy for longer than it should be, for example with a disk that does not answer.
    #[error("the device thread did not answer within {} ms: is a disk or a file it works on stuck?", waited.as_millis())]
    Stuck {
        /// How long it was waited for.
        waited: Duration,
    },
}

/// Reaches a [`DeviceLoop`] from any thread.
#[derive(Clone)]
pub struct LoopHandle {
    endpoint: RemoteEndpoint<Subscriber>,
}

impl std::fmt::Debug for LoopHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoopHandle").finish_non_exhaustive()
    }
}

impl LoopHandle {
    /// Adds `subscriber`: its `init` runs on the loop's thread before this returns.
    ///
    /// # Errors
    ///
    /// [`LoopError`] when the thread has ended or does not answer.
    pub fn add(&self, subscriber: Subscriber) -> Result<SubscriberId, LoopError> {
        self.call(PATIENCE, move |ops| ops.add_subscriber(subscriber))
    }

    /// Removes a subscriber and deregisters its descriptors.
    ///
    /// # Errors
    ///
    /// [`LoopError`] when it is not there, or when the thread has ended or does not answer.
    pub fn remove(&self, id: SubscriberId) -> Result<(), LoopError> {
        let removed = self.call(PATIENCE, move |ops| ops.remove_subscriber(id).map(drop))?;
        Ok(removed?)
    }

    /// Runs `work` on the loop's thread, between two events, and gives its result. When the thread does not come to
    /// it within `timeout`, the caller is told so; the work is then done later, or never.
    ///
    /// Calling this from the loop's own thread always ends in [`LoopError::Stuck`].
    ///
    /// # Errors
    ///
    /// [`LoopError`] when the thread has ended or does not answer in time.
    pub fn run<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LoopError> {
        self.call(timeout, move |_| work())
    }

    fn call<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl FnOnce(&mut dyn SubscriberOps<Subscriber = Subscriber>) -> T + Send + 'static,
    ) -> Result<T, LoopError> {
        let (answer, answered) = sync_channel(1);
        // Nobody may be waiting for the answer any more, which is no error here.
        let sent = self.endpoint.fire(move |ops| drop(answer.send(work(ops))));
        sent.map_err(|error| match error {
            event_manager::Error::ChannelSend => LoopError::Ended,
            other => LoopError::Events(other),
        })?;
        answered.recv_timeout(timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => LoopError::Stuck { waited: timeout },
            RecvTimeoutError::Disconnected => LoopError::Ended,
        })
    }
}

/// An event loop on a thread of its own. Dropping it stops it.
#[derive(Debug)]
pub struct DeviceLoop {
    handle: LoopHandle,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DeviceLoop {
    /// Starts the loop on a new thread called `name` (15 bytes of it are seen by the host).
    ///
    /// # Errors
    ///
    /// [`LoopError`] when the host gives no thread or no epoll instance.
    pub fn spawn(name: &str) -> Result<Self, LoopError> {
        let mut manager = EventManager::<Subscriber>::new()?;
        let handle = LoopHandle { endpoint: manager.remote_endpoint() };
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // A guest waits for most of what is done here. Where the host does not let us, it waits longer.
                let _ = memory::threads::be_urgent();
                serve(&mut manager, &stop);
            })
            .map_err(|source| LoopError::Spawn { name: name.to_owned(), source })?;
        Ok(Self { handle, stopping, thread: Some(thread) })
    }

    /// A handle for other threads.
    #[must_use]
    pub fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }

    /// Ends the thread and waits for it, for a bounded time. Its subscribers are let go.
    ///
    /// # Errors
    ///
    /// [`LoopError::Stuck`] when the thread is busy for too long: it ends by itself once it can.
    pub fn stop(mut self) -> Result<(), LoopError> {
        self.stop_and_join()
    }

    fn stop_and_join(&mut self) -> Result<(), LoopError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.stopping.store(true, Ordering::Release);
        // The answer or the thread's end, whichever comes first, means that it can be joined.
        if let Err(stuck @ LoopError::Stuck { .. }) = self.handle.run(PATIENCE, || ()) {
            return Err(stuck);
        }
        thread.join().map_err(|_| LoopError::Ended)
    }
}

impl Drop for DeviceLoop {
    fn drop(&mut self) {
        if let Err(error) = self.stop_and_join() {
            tracing::error!(%error, "a device thread was left behind");
        }
    }
}

fn serve(manager: &mut EventManager<Subscriber>, stopping: &AtomicBool) {
    while !stopping.load(Ordering::Acquire) {
        if let Err(error) = manager.run() {
            tracing::error!(%error, "a device thread cannot wait for events and ends");
            return;
        }
    }
}

/// Waits, for tests, until a loop has served every event that there was when this was called.
///
/// A closure that [`LoopHandle::run`] has run says nothing about that: several can run between two waits for events.
/// An event does: what was ready before it is served in the same round or an earlier one, and so before the next.
#[cfg(test)]
pub(crate) fn settle(handle: &LoopHandle) {
    use event_manager::{EventOps, EventSet, Events};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    struct Fence(EventFd, std::sync::mpsc::Sender<()>);

    impl MutEventSubscriber for Fence {
        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
            self.0.read().unwrap();
            self.1.send(()).unwrap();
        }

        fn init(&mut self, ops: &mut EventOps<'_>) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }
    }

    for _ in 0..2 {
        let (passed, fence) = std::sync::mpsc::channel();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        event.write(1).unwrap();
        let id = handle.add(Arc::new(Mutex::new(Fence(event, passed)))).unwrap();
        fence.recv_timeout(PATIENCE).unwrap();
        handle.remove(id).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use event_manager::{EventOps, EventSet, Events};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::sync::lock;

    struct Counting {
        event: EventFd,
        seen: u64,
    }

    impl MutEventSubscriber for Counting {
        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
            self.seen += self.event.read().unwrap();
        }

        fn init(&mut self, ops: &mut EventOps<'_>) {
            ops.add(Events::new(&self.event, EventSet::IN)).unwrap();
        }
    }

    #[test]
    fn subscribers_get_their_events_until_they_are_removed() {
        let device_loop = DeviceLoop::spawn("test-loop").unwrap();
        let handle = device_loop.handle();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let counting = Arc::new(Mutex::new(Counting { event: event.try_clone().unwrap(), seen: 0 }));
        let id = handle.add(counting.clone()).unwrap();
        event.write(3).unwrap();
        settle(&handle);
        assert_eq!(lock(&counting).seen, 3);
        handle.remove(id).unwrap();
        assert!(matches!(handle.remove(id), Err(LoopError::Events(_))));
        event.write(1).unwrap();
        settle(&handle);
        assert_eq!(lock(&counting).seen, 3);
        device_loop.stop().unwrap();
        assert!(matches!(handle.run(PATIENCE, || ()), Err(LoopError::Ended)));
    }

    #[test]
    fn a_loop_that_is_stuck_is_an_error_not_a_hang() {
        let device_loop = DeviceLoop::spawn("test-stuck").unwrap();
        let handle = device_loop.handle();
        let (release, released) = channel::<()>();
        let (started, start) = channel();
        let busy = handle.clone();
        let caller = std::thread::spawn(move || {
            busy.run(PATIENCE, move || {
                started.send(()).unwrap();
                _ = released.recv();
            })
        });
        start.recv().unwrap();
        let late = handle.run(Duration::from_millis(20), || ());
        assert!(matches!(late, Err(LoopError::Stuck { .. })), "{late:?}");
        drop(release);
        caller.join().unwrap().unwrap();
        handle.run(PATIENCE, || ()).unwrap();
    }

    #[test]
    fn dropping_a_loop_ends_its_thread_and_lets_subscribers_go() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let counting = Arc::new(Mutex::new(Counting { event, seen: 0 }));
        let device_loop = DeviceLoop::spawn("test-drop").unwrap();
        device_loop.handle().add(counting.clone()).unwrap();
        drop(device_loop);
        assert_eq!(Arc::strong_count(&counting), 1);
    }
}
