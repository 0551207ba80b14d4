//! From two files to what a VM is made of.
//!
//! ```text
//!   state file ──▶ Saved ──▶ checked against this host ─┬▶ Resources, DevicesState
//!                                                       └▶ MemoryPlan: File, Uffd, or Lazy over a chain of files
//! ```
//!
//! Everything that can be refused is, before anything of the guest runs.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use api::types::{HugePages, LazyOptions, MemBackend, MemBackendType, RestoredHugePages, SnapshotLoad};
use memory::fault::{self, FillOptions, ServedMemory};
use memory::image::{Contents, Stack, StackError};
use memory::source::Reading;

use super::file::{self, AsideError, FileError, SnapshotId};
use super::mapped::{self, MapError};
use super::saved::{DecodeError, Parent, Saved};
use crate::machine::memory::{Foundation, MemoryPlan, ServedPlan, backing};

/// How many files may lie over each other.
const CHAIN_MAX: usize = 64;

/// How often a snapshot is read that is replaced meanwhile: once is chance.
const TRIES: usize = 4;

/// Why a snapshot cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The state file cannot be read.
    #[error("Failed to get snapshot state from file: {0}")]
    State(#[from] FileError),
    /// It is not the state of a machine.
    #[error("Failed to get snapshot state from file: {0}")]
    Decode(#[from] DecodeError),
    /// The memory file is looked for and cannot be.
    #[error("Failed to get snapshot memory from file: {0}")]
    Find(#[from] AsideError),
    /// The memory file cannot be mapped.
    #[error("Failed to get snapshot memory from file: {0}")]
    Map(#[from] MapError),
    /// The memory files are not what the state says.
    #[error("Failed to get snapshot memory from file: {0}")]
    Stack(#[from] StackError),
    /// Somebody saves to the same files over and over.
    #[error(
        "the snapshot {} was replaced each time it was being loaded: load it when nobody saves there, or save elsewhere",
        path.display()
    )]
    Replaced {
        /// The state file.
        path: PathBuf,
    },
    /// A diff cannot be mapped alone.
    #[error(
        "the snapshot is a diff, which cannot be mapped without what is below it: load it with the backend type Lazy, \
         or make it whole with `faultless snapshot rebase`"
    )]
    DiffFile,
    /// Huge pages of a pool have no file.
    #[error(
        "Cannot restore hugetlbfs backed snapshot by mapping the memory file. Please use uffd, or the backend type Lazy."
    )]
    HugePagesFile,
    /// What a diff is over is not there.
    #[error(
        "the snapshot is a diff over the snapshot {id}, of which no state file is at {}: bring that back, or name a \
         full snapshot", path.display()
    )]
    NoParent {
        /// The id of what is missing.
        id: String,
        /// Where it was.
        path: PathBuf,
    },
    /// A diff that lies over itself.
    #[error("the snapshot is a diff that lies over itself, at {}: it was tampered with, use another copy", path.display())]
    Loop {
        /// Where.
        path: PathBuf,
    },
    /// Too many diffs.
    #[error(
        "the snapshot is a diff over {CHAIN_MAX} others and more: make it whole with `faultless snapshot rebase`"
    )]
    Deep,
}

/// A snapshot whose state was read.
#[derive(Debug)]
pub struct Loaded {
    /// The machine.
    pub saved: Saved,
    /// What a diff over it names.
    pub parent: Parent,
}

impl Loaded {
    /// Reads what `load` names, and opens its memory from `backend`: files of one snapshot, whoever saves there
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub fn open(load: &SnapshotLoad, backend: &MemBackend) -> Result<(Self, MemoryPlan), LoadError> {
        let (state, memory) = (Path::new(&load.snapshot_path), Path::new(&backend.backend_path));
        for _ in 0..TRIES {
            let loaded = Self::read(state, memory)?;
            if backend.backend_type == MemBackendType::Uffd {
                let plan = loaded.memory_plan(load, backend)?;
                return Ok((loaded, plan));
            }
            let place = file::memory_path(loaded.saved.id, memory)?;
            let plan = loaded.memory_plan(load, backend);
            // In this order: a memory file makes room for the next one before the state file does.
            let is_there = file::memory_path(loaded.saved.id, memory)? == place
                && file::id_at(state)? == Some(loaded.saved.id);
            if is_there {
                return plan.map(|plan| (loaded, plan));
            }
        }
        Err(LoadError::Replaced { path: state.to_owned() })
    }

    /// Reads the state file at `path`, whose memory file is at `memory`.
    fn read(path: &Path, memory: &Path) -> Result<Self, LoadError> {
        let saved = Saved::decode(&file::read(path)?)?;
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let parent = Parent { id: saved.id.0, state_path: absolute(path), memory_path: absolute(memory) };
        Ok(Self { saved, parent })
    }

    /// How the memory comes about.
    fn memory_plan(&self, load: &SnapshotLoad, backend: &MemBackend) -> Result<MemoryPlan, LoadError> {
        let huge_pages = self.huge_pages(load.huge_pages);
        let path = Path::new(&backend.backend_path);
        match backend.backend_type {
            MemBackendType::File => self.map(path, huge_pages),
            MemBackendType::Uffd => {
                Ok(MemoryPlan::Handed { backing: backing(huge_pages), socket: path.to_owned() })
            }
            MemBackendType::Lazy => self.serve(path, huge_pages, load.lazy.clone().unwrap_or_default()),
        }
    }

    fn huge_pages(&self, wanted: RestoredHugePages) -> HugePages {
        match wanted {
            RestoredHugePages::Snapshot => self
                .saved
                .config
                .machine_config
                .as_ref()
                .map(|machine| machine.huge_pages)
                .unwrap_or_default(),
            RestoredHugePages::None => HugePages::None,
            RestoredHugePages::Transparent => HugePages::Transparent,
            RestoredHugePages::Hugetlb2M => HugePages::Hugetlb2M,
        }
    }

    fn map(&self, path: &Path, huge_pages: HugePages) -> Result<MemoryPlan, LoadError> {
        if huge_pages == HugePages::Hugetlb2M {
            return Err(LoadError::HugePagesFile);
        }
        if self.saved.memory.parent.is_some() {
            return Err(LoadError::DiffFile);
        }
        let path = file::memory_path(self.saved.id, path)?;
        Ok(MemoryPlan::File(mapped::open(&path, &self.saved.memory.contents)?))
    }

    fn serve(&self, path: &Path, huge_pages: HugePages, lazy: LazyOptions) -> Result<MemoryPlan, LoadError> {
        let bytes = self.saved.memory.contents.pages().bytes();
        let stack = Stack::open(&chain(&self.saved, path)?, bytes)?;
        let (source, reader) = (stack.reader(), stack.reader());
        let rate_mib_s = lazy.fill_mib_s.map(|rate| u32::try_from(rate).unwrap_or(u32::MAX));
        let fill = FillOptions {
            everything: rate_mib_s != Some(0),
            rate_mib_s: rate_mib_s.and_then(NonZeroU32::new),
        };
        let backing = backing(huge_pages);
        // So that it can be saved while the guest runs.
        let write_protect = ServedMemory::can_protect(backing);
        Ok(MemoryPlan::Served(Box::new(ServedPlan {
            foundation: Foundation::New(backing),
            source: Box::new(Reading::new(source)),
            reader: Some(Box::new(reader)),
            options: fault::Options { fill, write_protect, ..fault::Options::default() },
            again: Some(Box::new(move || Box::new(stack.reader()))),
            started: None,
        })))
    }
}

/// The memory files of `saved`, whose own is at `path`: what is below first, and what each has.
///
/// # Errors
///
/// [`LoadError`] where one that it lies over is not to be found.
pub fn chain(saved: &Saved, path: &Path) -> Result<Vec<(PathBuf, Contents)>, LoadError> {
    let mut files = vec![(file::memory_path(saved.id, path)?, saved.memory.contents.clone())];
    let mut seen = HashSet::from([saved.id.0]);
    let mut below = saved.memory.parent.clone();
    // Moved together, they lie together.
    let mut folder = path.parent().unwrap_or(Path::new("")).to_owned();
    while let Some(parent) = below {
        if !seen.insert(parent.id) {
            return Err(LoadError::Loop { path: parent.state_path });
        }
        if files.len() == CHAIN_MAX {
            return Err(LoadError::Deep);
        }
        let (saved, memory) = find(&parent, &folder)?;
        folder = memory.parent().unwrap_or(Path::new("")).to_owned();
        files.push((memory, saved.memory.contents));
        below = saved.memory.parent;
    }
    files.reverse();
    Ok(files)
}

/// The snapshot that `parent` names: where it was, or beside the diff in `folder`.
fn find(parent: &Parent, folder: &Path) -> Result<(Saved, PathBuf), LoadError> {
    let id = SnapshotId(parent.id);
    let beside = |path: &Path| path.file_name().map(|name| folder.join(name));
    let places = [
        Some((parent.state_path.clone(), parent.memory_path.clone())),
        beside(&parent.state_path).zip(beside(&parent.memory_path)),
    ];
    for (state, memory) in places.into_iter().flatten() {
        // What is at the place may be another snapshot by now.
        if let Ok(file) = file::read(&state)
            && file.header().id == id
        {
            return Ok((Saved::decode(&file)?, file::memory_path(id, &memory)?));
        }
    }
    Err(LoadError::NoParent { id: id.to_string(), path: parent.state_path.clone() })
}
