//! The filler's thread, from outside.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{FillQueue, Filler};
use crate::source::PageReader;
use crate::threads;

/// How long a reader may take to come back once the filler is to stop.
const READ_MAX: Duration = Duration::from_secs(2);

/// The thread that fills, and what it is told by.
pub(in crate::fault) struct FillerThread {
    pub(in crate::fault) queue: Arc<FillQueue>,
    thread: JoinHandle<Box<dyn PageReader>>,
}

/// How a filler has come to its end.
pub(in crate::fault) enum FillerEnd {
    /// As it was told to.
    Stopped(Box<dyn PageReader>),
    /// It has not come back from its reader. The thread stays, with all it has, until it does, and then ends: it places
    /// nothing any more.
    Hangs,
    /// It has panicked.
    Panicked,
}

impl FillerThread {
    pub(in crate::fault) fn spawn(filler: Filler) -> io::Result<Self> {
        let queue = Arc::clone(&filler.queue);
        let run = move || {
            // The guest comes first. Where the host does not let it, the guest has to share its processors with this.
            let _ = threads::be_background();
            filler.run()
        };
        let thread = thread::Builder::new().name("fill".to_owned()).spawn(run)?;
        Ok(Self { queue, thread })
    }

    /// Stops it, or leaves it where it does not come back.
    pub(in crate::fault) fn stop(self) -> FillerEnd {
        self.queue.stop();
        // While it places it is waited for again: the kernel, and the wait for removals, bound that.
        while !self.queue.is_closed_within(READ_MAX) {
            if self.queue.turn.leave() {
                return FillerEnd::Hangs;
            }
        }
        self.thread.join().map_or(FillerEnd::Panicked, FillerEnd::Stopped)
    }
}
