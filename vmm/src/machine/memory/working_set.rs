//! The working set of a restored guest: placed ahead, recorded anew, and kept beside the memory file.
//!
//! ```text
//!   load ──▶ Known ──place──▶ the engine is told what to place first           while the VM is put together, or after
//!              │
//!              ▼ resumed
//!          Recording        "working-set": waits, takes the record, writes a file          ends by itself
//!              ▲
//!              └─ pause, or the VM's end
//! ```
//!
//! A record ends 10 s after the guest runs, when all of its memory is there, or when it is paused. Several machines that go
//! on from the same files at once each write what they know, whole or not at all, and the last one to do so is believed:
//! what another has missed is missed again, and recorded then. Locking the file for that is not worth it.
//!
//! Invariants:
//!
//! - Nothing here fails a restore: a set that cannot be used or written is told in the log, once, and done without.
//! - Only the thread of its own waits for files that are written.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use memory::fault::FaultEngine;
use memory::working_set::{FILE_BYTES_MAX, WorkingSet};

use crate::snapshot::file::{Aside, AsideError, SnapshotId};

/// What is behind a memory file's name in the name of its working set.
const SUFFIX: &str = ".working-set";

/// How long is recorded after the guest has begun to run.
const RECORD_TIME: Duration = Duration::from_secs(10);

/// How often it is looked whether all memory is there.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// What is known of a guest's working set before it runs, and where.
#[derive(Debug)]
pub struct Known {
    path: PathBuf,
    id: SnapshotId,
    set: WorkingSet,
    is_placed: bool,
}

impl Known {
    /// Reads what is known of the snapshot `id`, whose memory file is at `memory` and has `ram_pages` pages.
    #[must_use]
    pub fn read(memory: &Path, id: SnapshotId, ram_pages: u64) -> Self {
        let path = path_beside(memory);
        let set = match read(&path) {
            Ok(None) => WorkingSet::empty(ram_pages),
            Ok(Some(bytes)) => WorkingSet::from_bytes(&bytes, &id.0, ram_pages).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "a working set is not used");
                WorkingSet::empty(ram_pages)
            }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a working set cannot be read, and is done without");
                WorkingSet::empty(ram_pages)
            }
        };
        Self { path, id, set, is_placed: false }
    }

    /// Has the engine place it, the first time.
    pub(super) fn place(&mut self, engine: &FaultEngine) {
        if std::mem::replace(&mut self.is_placed, true) {
            return;
        }
        let plan = self.set.plan(engine.moves_chunks());
        tracing::debug!(pages = self.set.page_count(), ranges = plan.len(), "a working set is placed");
        plan.into_iter().for_each(|range| engine.prefetch(range));
    }

    /// Adds what was wanted in spite of it, and writes it where that is anything new.
    fn finish(self, engine: &FaultEngine) {
        let grown = self.set.grown(&engine.take_record());
        if grown == self.set {
            return;
        }
        match write(&self.path, &grown.to_bytes(&self.id.0)) {
            Ok(()) => {
                tracing::debug!(path = %self.path.display(), pages = grown.page_count(), "a working set is written");
            }
            Err(error) => {
                let error = crate::error::chain(&error);
                tracing::warn!(
                    error,
                    "the working set is not kept: give \"working_set\": false to do without"
                );
            }
        }
    }
}

/// Where the working set of the memory file at `memory` is.
#[must_use]
pub fn path_beside(memory: &Path) -> PathBuf {
    let mut path = OsString::from(memory);
    path.push(SUFFIX);
    path.into()
}

/// What is in the file, if there is one. What is no file is not waited for.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file: File = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), AsideError> {
    let aside = Aside::create(path)?;
    aside.write_all(bytes)?;
    aside.commit_unsynced()
}

/// The record of a guest that runs.
pub(super) struct Recording {
    /// Dropped to end it.
    running: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Recording {
    pub(super) fn start(known: Known, engine: &Arc<FaultEngine>) -> io::Result<Self> {
        let (running, ended) = channel();
        let engine = Arc::clone(engine);
        let record = move || {
            wait(&engine, &ended);
            known.finish(&engine);
        };
        let thread = thread::Builder::new().name("working-set".to_owned()).spawn(record)?;
        Ok(Self { running: Some(running), thread: Some(thread) })
    }

    /// Ends the record. It is written meanwhile; nobody waits for that.
    pub(super) fn end(&mut self) {
        self.running = None;
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.end();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that records a working set panicked");
        }
    }
}

/// Waits for the end of a record.
fn wait(engine: &FaultEngine, ended: &Receiver<()>) {
    let deadline = Instant::now() + RECORD_TIME;
    while !engine.is_filled() && Instant::now() < deadline {
        if ended.recv_timeout(LOOK_PERIOD) != Err(RecvTimeoutError::Timeout) {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SnapshotId = SnapshotId([3; 16]);
    const RAM_PAGES: u64 = 1 << 14;

    fn some() -> WorkingSet {
        let range = memory::PageRange { start: memory::PageIndex(7), count: 9 };
        WorkingSet::empty(RAM_PAGES).grown(&[range])
    }

    #[test]
    fn what_was_written_is_known_the_next_time_and_to_no_other_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let memory = folder.path().join("memory");
        assert_eq!(Known::read(&memory, ID, RAM_PAGES).set, WorkingSet::empty(RAM_PAGES));
        write(&path_beside(&memory), &some().to_bytes(&ID.0)).unwrap();
        assert_eq!(Known::read(&memory, ID, RAM_PAGES).set, some());
        assert_eq!(path_beside(&memory), folder.path().join("memory.working-set"));
        assert_eq!(Known::read(&memory, SnapshotId([4; 16]), RAM_PAGES).set, WorkingSet::empty(RAM_PAGES));
    }

    #[test]
    fn what_is_no_file_or_too_long_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let memory = folder.path().join("memory");
        let path = path_beside(&memory);
        std::fs::create_dir(&path).unwrap();
        assert_eq!(Known::read(&memory, ID, RAM_PAGES).set.page_count(), 0);
        std::fs::remove_dir(&path).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(pipe.success());
        assert_eq!(Known::read(&memory, ID, RAM_PAGES).set.page_count(), 0);
        std::fs::remove_file(&path).unwrap();
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(Known::read(&memory, ID, RAM_PAGES).set.page_count(), 0);
    }
}
