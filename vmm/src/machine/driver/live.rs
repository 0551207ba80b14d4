//! Saving a machine while its guest runs.
//!
//! ```text
//!   driver     begin files ── protect ── pause ── state, the moment ── resume ──┐            ┌── answer
//!   "saving"                                                                     └─ memory, ──┘
//!                                                                                  files in their places
//! ```
//!
//! The guest stands still between `pause` and `resume` only. The request is answered when both files are where they
//! belong; until then others are taken as ever, but for another snapshot. A snapshot that fails leaves the guest as it
//! was, and no file.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use api::types::{SnapshotCreate, SnapshotType};
use api::{Fault, Reply, Request};
use memory::capture::Capture;
use memory::image::{Progress, WriteOptions};
use tokio::sync::oneshot;

use super::{Driver, RequestError};
use crate::error::chain;
use crate::machine::memory::live::Capturable;
use crate::machine::message::{Message, Notifier};
use crate::machine::state::VmState;
use crate::snapshot::lineage::Lineage;
use crate::snapshot::save::{self, Files, SaveError, Taken};
use crate::snapshot::saved::Parent;

/// How long the end of a machine waits for a snapshot that was cancelled.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
const CANCEL_POLL: Duration = Duration::from_millis(1);

/// Where the answer to a request goes.
pub(super) type Answer = oneshot::Sender<Result<Reply, Fault>>;

/// A snapshot that is being written.
pub(super) struct Saving {
    progress: Arc<Progress>,
    thread: JoinHandle<()>,
    answer: Answer,
}

/// What is written: a moment of the machine, and where to.
struct Moment {
    files: Files,
    taken: Taken,
    capture: Capture,
    capturable: Capturable,
    instance_id: String,
}

impl Moment {
    fn write(self, progress: &Progress) -> Result<Parent, SaveError> {
        let Self { files, taken, capture, mut capturable, instance_id } = self;
        let ranges = save::ranges(capturable.engine().ram());
        let options = WriteOptions { progress: Some(progress), ..WriteOptions::default() };
        let saved = capture.save(files.memory(), capturable.missing(), &options);
        capturable.release();
        files.finish(taken, &instance_id, &ranges, saved?, None)
    }
}

impl Driver {
    /// Begins a snapshot of the guest as it is now; it is answered later, or now if it cannot be.
    pub(super) fn save_live(&mut self, create: SnapshotCreate, answer: Answer) {
        let saving = match self.moment(create) {
            Ok(moment) => spawn(moment, self.notifier.clone()),
            Err(error) => Err(error),
        };
        match saving {
            Ok((progress, thread)) => self.saving = Some(Saving { progress, thread, answer }),
            // A client that has gone does not read its answer.
            Err(error) => drop(answer.send(Err(Fault::bad_request(chain(&error))))),
        }
    }

    /// The machine as it is now.
    fn moment(&mut self, create: SnapshotCreate) -> Result<Moment, RequestError> {
        create.validate().map_err(RequestError::Snapshot)?;
        self.state.admit(&Request::CreateSnapshot(create.clone()))?;
        self.refuse_while_saving()?;
        if create.snapshot_type == SnapshotType::Diff {
            return Err(SaveError::LiveDiff.into());
        }
        let files = Files::begin(&create)?;
        let runs = self.state == VmState::Running;
        let vm = self.vm.as_mut().expect("a state after the start has a VM");
        files.check_limit(vm.memory.ram().size_bytes())?;
        let capturable = vm.memory.capturable().map_err(SaveError::from)?;
        let armed = Capture::prepare(capturable.engine()).map_err(SaveError::from)?;
        let stood = Instant::now();
        if runs {
            vm.pause()?;
        }
        let moment = vm.take(&self.resources).and_then(|taken| Ok((taken, armed.begin()?)));
        // Whatever came of it, the guest goes on.
        if runs {
            vm.resume()?;
        }
        tracing::debug!(elapsed_us = stood.elapsed().as_micros(), "the microVM stood still to be saved");
        let (taken, capture) = moment?;
        Ok(Moment { files, taken, capture, capturable, instance_id: self.instance_id.clone() })
    }

    /// One snapshot at a time.
    pub(super) fn refuse_while_saving(&self) -> Result<(), RequestError> {
        if self.saving.is_some() { Err(SaveError::Busy.into()) } else { Ok(()) }
    }

    /// A snapshot was written, or not.
    pub(super) fn note_saved(&mut self, saved: Result<Parent, SaveError>) {
        let Some(Saving { thread, answer, .. }) = self.saving.take() else { return };
        if thread.join().is_err() {
            tracing::error!("the thread that saved the microVM panicked");
        }
        let reply = match saved {
            Ok(lineage) => {
                tracing::info!(state = %lineage.state_path.display(), "the microVM is saved, and ran meanwhile");
                self.lineage = Some(Lineage::over(Vec::new(), lineage));
                Ok(Reply::Empty)
            }
            Err(error) => Err(Fault::bad_request(chain(&RequestError::from(error)))),
        };
        // A client that has gone does not read its answer.
        let _ = answer.send(reply);
    }

    /// Gives up a snapshot that is being written: vCPUs may wait for it.
    pub(super) fn cancel_saving(&mut self) {
        let Some(Saving { progress, thread, answer }) = self.saving.take() else { return };
        progress.cancel();
        let deadline = Instant::now() + CANCEL_TIMEOUT;
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(CANCEL_POLL);
        }
        if !thread.is_finished() {
            tracing::error!(
                "a snapshot that was cancelled is stuck in a file, and its end is not waited for"
            );
        }
        // As above.
        let _ = answer.send(Err(Fault::bad_request("Create snapshot error: the microVM has ended")));
    }
}

type Spawned = (Arc<Progress>, JoinHandle<()>);

fn spawn(moment: Moment, notifier: Notifier) -> Result<Spawned, RequestError> {
    let progress = Arc::new(Progress::default());
    let watched = Arc::clone(&progress);
    let write = move || {
        let saved = moment.write(&watched);
        notifier.send(Message::Saved(Box::new(saved)));
    };
    let thread = thread::Builder::new().name("saving".to_owned()).spawn(write).map_err(SaveError::Thread)?;
    Ok((progress, thread))
}

impl std::fmt::Debug for Saving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saving").finish_non_exhaustive()
    }
}
