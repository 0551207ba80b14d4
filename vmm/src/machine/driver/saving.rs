//! Saving a machine: what has to be done while it stands still, here; writing its memory, on a thread.
//!
//! ```text
//!   driver     begin files ── stand still ── state, the moment ── go on, if it ran ──┐            ┌── answer
//!   "saving"                                                                          └─ memory, ──┘
//!                                                                                       files in their places
//! ```
//!
//! | guest | its memory |
//! |---|---|
//! | runs on | is captured: protected at the moment, and read before it is written |
//! | stands still, served by an engine | is captured, too: what it does not have yet is read from the source, and stays there |
//! | stands still | is read as it is; of a diff, what has changed |
//!
//! The request is answered when both files are where they belong. Until then another snapshot is refused, and a guest
//! that stands still to be saved does not go on; everything else is taken. The driver itself reads no guest memory: it
//! may not come. A snapshot that fails leaves the guest as it was, and no file.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use api::types::{SnapshotCreate, SnapshotType};
use api::{Fault, Reply, Request};
use memory::capture::{Armed, Capture};
use memory::image::{self, Contents, Progress, Selection, WriteOptions};
use memory::{GuestRam, PageRange};
use tokio::sync::oneshot;

use super::{Driver, RequestError};
use crate::error::chain;
use crate::machine::memory::Memory;
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
    /// What it is over.
    ancestors: Vec<Parent>,
    /// Whether the guest stands still for it.
    is_still: bool,
}

/// The memory of a moment.
enum Content {
    /// Protected until it is read.
    Captured(Capture, Capturable),
    /// Of a guest that stands still: all of it, or what has changed.
    Still { ram: GuestRam, is_unserved: bool, changed: Option<Vec<PageRange>> },
}

impl Content {
    fn of_still(memory: &mut Memory, is_diff: bool) -> Result<Self, SaveError> {
        // What is taken stays until it is saved.
        memory.changes.take()?;
        let changed = is_diff.then(|| memory.changes.changed()).transpose()?;
        Ok(Self::Still { ram: memory.ram().clone(), is_unserved: memory.is_unserved(), changed })
    }

    /// Writes it to `file`, and gives back what was only there for that.
    fn write(self, file: &std::fs::File, options: &WriteOptions<'_>) -> Result<Contents, SaveError> {
        match self {
            Self::Captured(capture, mut capturable) => {
                let contents = capture.save(file, capturable.missing(), options);
                // Nobody waits for this thread any more. Where the host does not let it, it does not give way.
                let _ = memory::threads::be_background();
                capturable.release();
                Ok(contents?)
            }
            Self::Still { ram, is_unserved, changed } => {
                let selection = match &changed {
                    Some(changed) => Selection::Pages(changed),
                    None => Selection::Full { unserved: is_unserved },
                };
                Ok(image::write(&ram, selection, file, options)?)
            }
        }
    }
}

/// What is written: a moment of the machine, and where to.
struct Moment {
    files: Files,
    taken: Taken,
    content: Content,
    ranges: Vec<memory::RamRange>,
    instance_id: String,
    parent: Option<Parent>,
    ancestors: Vec<Parent>,
    is_still: bool,
}

impl Moment {
    fn write(self, progress: &Progress) -> Result<Parent, SaveError> {
        let Self { files, taken, content, ranges, instance_id, parent, .. } = self;
        let options = WriteOptions { progress: Some(progress), ..WriteOptions::default() };
        let contents = content.write(files.memory(), &options)?;
        files.finish(taken, &instance_id, &ranges, contents, parent)
    }
}

impl Driver {
    /// Begins a snapshot of the guest as it is now; it is answered later, or now if it cannot be.
    pub(super) fn save(&mut self, create: SnapshotCreate, answer: Answer) {
        match self.moment(create).and_then(|moment| self.spawn(moment)) {
            Ok(saving) => self.saving = Some(saving(answer)),
            // A client that has gone does not read its answer.
            Err(error) => drop(answer.send(Err(Fault::bad_request(chain(&error))))),
        }
    }

    /// The machine as it is now.
    fn moment(&mut self, create: SnapshotCreate) -> Result<Moment, RequestError> {
        create.validate().map_err(RequestError::Snapshot)?;
        self.state.admit(&Request::CreateSnapshot(create.clone()))?;
        self.refuse_while_saving()?;
        let wants_diff = create.snapshot_type == SnapshotType::Diff;
        if create.live && wants_diff {
            return Err(SaveError::LiveDiff.into());
        }
        let base = self.lineage.as_ref().filter(|_| wants_diff).and_then(|lineage| lineage.base_of(&create));
        let (parent, ancestors) = base.unzip();
        let files = Files::begin(&create)?;
        let memory = &self.vm_mut().memory;
        let ranges = save::ranges(memory.ram());
        files.check_limit(memory.ram().size_bytes())?;
        let is_captured = create.live || (parent.is_none() && !memory.is_unserved());
        let armed = match is_captured.then(|| arm(memory)).transpose() {
            Err(error) if create.live => return Err(error.into()),
            // As a guest that stands still can be saved without.
            armed => armed.unwrap_or(None),
        };
        let (taken, content) = self.stand_still(armed, parent.is_some())?;
        let (instance_id, ancestors) = (self.instance_id.clone(), ancestors.unwrap_or_default());
        Ok(Moment { files, taken, content, ranges, instance_id, parent, ancestors, is_still: !create.live })
    }

    /// What is taken while the guest stands still; it goes on if it ran, whatever comes of it.
    fn stand_still(
        &mut self,
        armed: Option<(Armed, Capturable)>,
        is_diff: bool,
    ) -> Result<(Taken, Content), RequestError> {
        let runs = self.state == VmState::Running;
        let vm = self.vm.as_mut().expect("a state after the start has a VM");
        let stood = Instant::now();
        if runs {
            vm.pause()?;
        }
        // The memory last: the vCPUs' and devices' state may have been written to it.
        let moment = vm.take(&self.resources).and_then(|taken| {
            Ok(match armed {
                Some((armed, capturable)) => (taken, Content::Captured(armed.begin()?, capturable)),
                None => (taken, Content::of_still(&mut vm.memory, is_diff)?),
            })
        });
        if runs && let Err(error) = vm.resume() {
            self.state = VmState::Paused;
            self.publication.publish(&self.state);
            return Err(error.into());
        }
        tracing::debug!(elapsed_us = stood.elapsed().as_micros(), "the state of the microVM was taken");
        Ok(moment?)
    }

    /// One snapshot at a time.
    pub(super) fn refuse_while_saving(&self) -> Result<(), RequestError> {
        if self.saving.is_some() { Err(SaveError::Busy.into()) } else { Ok(()) }
    }

    /// A guest that stands still to be saved does not go on before it is.
    pub(super) fn refuse_while_still(&self) -> Result<(), RequestError> {
        if self.saving.as_ref().is_some_and(|saving| saving.is_still) {
            return Err(SaveError::Still.into());
        }
        Ok(())
    }

    /// A snapshot was written, or not.
    pub(super) fn note_saved(&mut self, saved: Result<Parent, SaveError>) {
        let Some(Saving { thread, answer, ancestors, is_still, .. }) = self.saving.take() else { return };
        if thread.join().is_err() {
            tracing::error!("the thread that saved the microVM panicked");
        }
        let reply = match saved {
            Ok(saved) => {
                let is_diff = !ancestors.is_empty();
                tracing::info!(state = %saved.state_path.display(), is_diff, is_still, "the microVM is saved");
                if let Some(vm) = self.vm.as_mut().filter(|_| is_still) {
                    vm.memory.changes.saved();
                }
                self.lineage = Some(Lineage::over(ancestors, saved));
                Ok(Reply::Empty)
            }
            Err(error) => Err(Fault::bad_request(chain(&RequestError::from(error)))),
        };
        // A client that has gone does not read its answer.
        let _ = answer.send(reply);
    }

    /// Gives up a snapshot that is being written: vCPUs may wait for it. One that is written is told.
    pub(super) fn cancel_saving(&mut self) {
        let Some(saving) = &self.saving else { return };
        saving.progress.cancel();
        let deadline = Instant::now() + CANCEL_TIMEOUT;
        while !saving.thread.is_finished() && Instant::now() < deadline {
            thread::sleep(CANCEL_POLL);
        }
        if !saving.thread.is_finished() {
            tracing::error!("a snapshot that was cancelled is stuck, and its end is not waited for");
        } else if let Some(saved) = self.inbox.try_iter().find_map(Message::into_saved) {
            return self.note_saved(saved);
        }
        if let Some(Saving { answer, .. }) = self.saving.take() {
            // As above.
            let _ = answer.send(Err(Fault::bad_request("Create snapshot error: the microVM has ended")));
        }
    }

    fn spawn(&self, moment: Moment) -> Result<impl FnOnce(Answer) -> Saving + use<>, RequestError> {
        let progress = Arc::new(Progress::default());
        let (ancestors, is_still) = (moment.ancestors.clone(), moment.is_still);
        let (watched, mut teller) = (Arc::clone(&progress), Teller(Some(self.notifier.clone())));
        let write = move || teller.tell(moment.write(&watched));
        let thread =
            thread::Builder::new().name("saving".to_owned()).spawn(write).map_err(SaveError::Thread)?;
        Ok(move |answer| Saving { progress, thread, answer, ancestors, is_still })
    }
}

/// Protects memory as far as its guest does not write to it, for a moment to come.
fn arm(memory: &Memory) -> Result<(Armed, Capturable), SaveError> {
    let capturable = memory.capturable()?;
    Ok((Capture::prepare(capturable.engine())?, capturable))
}

/// Tells the driver what came of a snapshot, whatever does.
struct Teller(Option<Notifier>);

impl Teller {
    fn tell(&mut self, saved: Result<Parent, SaveError>) {
        if let Some(notifier) = self.0.take() {
            notifier.send(Message::Saved(Box::new(saved)));
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.tell(Err(SaveError::Panicked));
    }
}
