//! Serial input: from a descriptor into the guest's FIFO, as fast as the guest reads.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::Serial;
use crate::sync::lock;

/// What a source is to the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Watched: the loop tells when there is something to read.
    Watched,
    /// Not watched: the guest's FIFO is full.
    Resting,
    /// Of the kind that cannot be watched and never blocks: a file, or /dev/null.
    Plain,
    /// At its end.
    Ended,
}

/// Feeds a [`Serial`] from a terminal, a pty, a pipe, a socket or a file. It is a subscriber of the device loop.
///
/// The descriptor is used as it is given. It is not made non-blocking, which would change it for every process that
/// shares it, a user's shell among them: it is read only when the loop says that it is readable.
#[derive(Debug)]
pub struct SerialInput {
    serial: Arc<Mutex<Serial>>,
    room: EventFd,
    file: File,
    source: Source,
}

impl SerialInput {
    /// Input for `serial` from `source`.
    ///
    /// # Errors
    ///
    /// When the host gives no descriptor.
    pub fn new(serial: &Arc<Mutex<Serial>>, source: OwnedFd) -> io::Result<Self> {
        let room = lock(serial).room.try_clone()?;
        Ok(Self { serial: Arc::clone(serial), room, file: source.into(), source: Source::Resting })
    }

    /// Whether the input is at its end. It is not looked at any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.source == Source::Ended
    }

    fn watch(&mut self, ops: &mut EventOps<'_>) {
        let eperm = vmm_sys_util::errno::Error::new(libc::EPERM);
        match ops.add(Events::new(&self.file, EventSet::IN)) {
            Ok(()) => self.source = Source::Watched,
            // What epoll does not take is always readable.
            Err(event_manager::Error::Epoll(error)) if error == eperm => self.source = Source::Plain,
            Err(error) => {
                tracing::error!(%error, "cannot watch the serial port's input: it is ignored");
                self.source = Source::Ended;
            }
        }
    }

    fn unwatch(&mut self, ops: &mut EventOps<'_>, then: Source) {
        if self.source == Source::Watched
            && let Err(error) = ops.remove(Events::empty(&self.file))
        {
            tracing::error!(%error, "cannot stop watching the serial port's input");
        }
        self.source = then;
    }

    /// Moves what there is, at most one FIFO full. `None` is the input's end.
    fn pump(&mut self, room: usize) -> Option<usize> {
        let mut bytes = vec![0; room];
        match self.file.read(&mut bytes) {
            Ok(0) => None,
            Ok(count) => {
                lock(&self.serial).receive(&bytes[..count]);
                Some(count)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Some(0),
            // EIO is how a pty says that its other side is closed.
            Err(error) => {
                tracing::debug!(%error, "the serial port's input has ended");
                None
            }
        }
    }

    fn on_readable(&mut self, ops: &mut EventOps<'_>) {
        let room = lock(&self.serial).input_room();
        if room == 0 {
            self.unwatch(ops, Source::Resting);
        } else if self.pump(room).is_none() {
            self.unwatch(ops, Source::Ended);
        }
    }

    /// Reads a source that cannot be watched, until the FIFO is full: `room` then tells when to go on.
    fn pump_plain(&mut self) {
        while self.source == Source::Plain {
            let room = lock(&self.serial).input_room();
            if room == 0 {
                return;
            }
            if self.pump(room).is_none() {
                self.source = Source::Ended;
            }
        }
    }
}

impl MutEventSubscriber for SerialInput {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.room.as_raw_fd() {
            // Nothing to read means that another event has already taken it.
            drop(self.room.read());
            if self.source == Source::Resting {
                self.watch(ops);
            }
        } else if events.event_set().contains(EventSet::IN) {
            self.on_readable(ops);
        } else {
            // Hung up, or in error, with nothing left to read.
            self.unwatch(ops, Source::Ended);
        }
        self.pump_plain();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.room, EventSet::IN)) {
            tracing::error!(%error, "cannot watch the serial port's FIFO: its input may stop");
        }
        self.watch(ops);
        self.pump_plain();
    }
}
