//! Bringing a memory file and its state file to their places, so that there is a whole snapshot at every moment.
//!
//! Two files cannot be replaced at once. So the state file decides: it has an id, and when its memory file makes room
//! for another one it is kept under that id.
//!
//! ```text
//!   step            state       memory      .memory.OLD.kept      what a load finds
//!   ────            ─────       ──────      ────────────────      ─────────────────
//!   before          old         old         –                     old, memory
//!   KeepOld         old         –           old                   old, kept
//!   PlaceMemory     old         new         old                   old, kept
//!   PlaceState      new         new         old                   new, memory: what is kept is of another id
//!   DropKept        new         new         –                     new, memory
//! ```
//!
//! A load reads the state file and asks [`memory_path`] for the file of its id. A save that was cut off needs nobody
//! to clean up before that; the next save to the same memory path removes what is left. A step that fails is as one
//! at which the process ends.
//!
//! Limits: whoever copies a snapshot by hand after a save was cut off has to copy what is kept, too, or finds by the
//! memory's checksums that it does not fit. A load during a save may read the old state and open the new memory: who
//! loads asks again, for [`memory_path`] and then for [`id_at`], and begins anew where one of them has changed. A
//! snapshot that shares its memory path with a later one loses it to that.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::aside::{Aside, AsideError, Names};
use super::header::{HEADER_BYTES, SnapshotId};

/// One step. Whatever the last one was, there is a whole snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    SyncMemory,
    SyncState,
    DropStale,
    KeepOld,
    SyncKept,
    PlaceMemory,
    SyncMemoryPlace,
    PlaceState,
    SyncStatePlace,
    DropKept,
}

impl Step {
    pub(super) const ALL: [Self; 10] = [
        Self::SyncMemory,
        Self::SyncState,
        Self::DropStale,
        Self::KeepOld,
        Self::SyncKept,
        Self::PlaceMemory,
        Self::SyncMemoryPlace,
        Self::PlaceState,
        Self::SyncStatePlace,
        Self::DropKept,
    ];
}

/// Two files on their way.
#[derive(Debug)]
pub(super) struct Placing {
    memory: Aside,
    state: Aside,
    /// The snapshot that is at the state file's place until then.
    old: Option<SnapshotId>,
}

/// Brings a snapshot's two files to their places, replacing a snapshot that is there. At every moment there is one
/// that is whole.
///
/// # Errors
///
/// [`AsideError`], after which [`memory_path`] still finds what belongs to the state file that is there.
pub fn place(memory: Aside, state: Aside) -> Result<(), AsideError> {
    let mut placing = Placing::new(memory, state)?;
    Step::ALL.into_iter().try_for_each(|step| placing.take(step))
}

/// Where the memory of snapshot `id` is that was saved to `path`.
///
/// # Errors
///
/// [`AsideError::Host`] when the host does not say what is there.
pub fn memory_path(id: SnapshotId, path: &Path) -> Result<PathBuf, AsideError> {
    // Where no save goes, nothing is kept either.
    let Ok(names) = Names::of(path) else { return Ok(path.to_owned()) };
    let kept = kept_path(&names, id);
    let is_kept = kept.try_exists().map_err(AsideError::host("look at", &kept))?;
    Ok(if is_kept { kept } else { path.to_owned() })
}

impl Placing {
    pub(super) fn new(memory: Aside, state: Aside) -> Result<Self, AsideError> {
        let old = id_at(&state.target())?;
        Ok(Self { memory, state, old })
    }

    pub(super) fn take(&mut self, step: Step) -> Result<(), AsideError> {
        match step {
            Step::SyncMemory => self.memory.sync(),
            Step::SyncState => self.state.sync(),
            Step::DropStale => self.drop_stale(),
            Step::KeepOld => self.keep_old(),
            Step::SyncKept | Step::SyncMemoryPlace => self.memory.sync_folder(),
            Step::PlaceMemory => self.memory.rename(),
            Step::PlaceState => self.state.rename(),
            Step::SyncStatePlace => self.state.sync_folder(),
            Step::DropKept => self.kept().map_or(Ok(()), |kept| remove(&kept)),
        }
    }

    /// Where the old snapshot's memory is kept.
    fn kept(&self) -> Option<PathBuf> {
        self.old.map(|id| kept_path(self.memory.names(), id))
    }

    /// Removes what earlier saves have left. Nobody else writes to this path: the memory file's lock is ours.
    fn drop_stale(&self) -> Result<(), AsideError> {
        let names = self.memory.names();
        let listed = fs::read_dir(&names.folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        for entry in listed.map_err(AsideError::host("look into", &names.folder))? {
            let path = entry.path();
            if is_kept_of(names, &entry.file_name().to_string_lossy()) && self.kept().as_ref() != Some(&path)
            {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn keep_old(&self) -> Result<(), AsideError> {
        let Some(kept) = self.kept() else { return Ok(()) };
        let look = AsideError::host("look at", &kept);
        if kept.try_exists().map_err(look)? {
            // The last save was cut off: what is at the memory's place now belongs to no state file.
            return Ok(());
        }
        let memory = self.memory.target();
        match fs::rename(&memory, &kept) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(AsideError::host("keep", &memory)(error))
            }
            _ => Ok(()),
        }
    }
}

fn kept_path(memory: &Names, id: SnapshotId) -> PathBuf {
    memory.folder.join(format!(".{}.{id}.kept", memory.name))
}

/// Whether `name` is that of a kept file of `memory`.
fn is_kept_of(memory: &Names, name: &str) -> bool {
    let rest = name.strip_prefix('.').and_then(|name| name.strip_prefix(&memory.name));
    let id = rest.and_then(|rest| rest.strip_prefix('.')).and_then(|rest| rest.strip_suffix(".kept"));
    id.is_some_and(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn remove(path: &Path) -> Result<(), AsideError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(AsideError::host("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The id of the snapshot whose state file is at `path`, if there is one.
///
/// # Errors
///
/// [`AsideError::Host`] when the host does not say what is there.
pub fn id_at(path: &Path) -> Result<Option<SnapshotId>, AsideError> {
    let mut head = Vec::new();
    match File::open(path).and_then(|file| file.take(HEADER_BYTES as u64).read_to_end(&mut head)) {
        Ok(_) => Ok(SnapshotId::of_head(&head)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AsideError::host("look at", path)(error)),
    }
}
