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
use memory::fault::{self, FillOptions, RecordLimits, ServedMemory};
use memory::image::{Contents, Stack, StackError};
use memory::source::Reading;

use super::file::{self, AsideError, FileError, SnapshotId};
use super::lineage::Lineage;
use super::mapped::{self, MapError};
use super::saved::{DecodeError, Parent, Saved};
use crate::machine::memory::working_set::Known;
use crate::machine::memory::{Foundation, MemoryPlan, ServedPlan, backing};

/// How many files may lie over each other.
pub const CHAIN_MAX: usize = 64;

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
    /// Where the memory of what a diff is over is, nobody has said.
    #[error(
        "the snapshot is a diff over the snapshot {id}, which another process served when the diff was taken, so where \
         its memory file is is not known: lay the diff over that file, and load it with the backend type Uffd"
    )]
    NoParentMemory {
        /// The id of what it is over.
        id: String,
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
    /// What a diff of the machine is over, until it is saved again.
    pub lineage: Lineage,
    memory: Vec<(PathBuf, Contents)>,
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
            let loaded = Self::read(state, backend)?;
            if backend.backend_type == MemBackendType::Uffd {
                let plan = loaded.memory_plan(load, backend)?;
                return Ok((loaded, plan));
            }
            let place = loaded.memory.last().map(|(place, _)| place.clone());
            let plan = loaded.memory_plan(load, backend);
            // In this order: a memory file makes room for the next one before the state file does.
            let is_there = Some(file::memory_path(loaded.saved.id, memory)?) == place
                && file::id_at(state)? == Some(loaded.saved.id);
            if is_there {
                return plan.map(|plan| (loaded, plan));
            }
        }
        Err(LoadError::Replaced { path: state.to_owned() })
    }

    /// Reads the state file at `path`, whose memory comes from `backend`; of a diff, also those below it.
    fn read(path: &Path, backend: &MemBackend) -> Result<Self, LoadError> {
        let saved = Saved::decode(&file::read(path)?)?;
        let memory = match backend.backend_type {
            MemBackendType::File | MemBackendType::Lazy => Path::new(&backend.backend_path),
            // Where that process has it from is not told.
            MemBackendType::Uffd => Path::new(""),
        };
        let chain = match backend.backend_type {
            MemBackendType::File if saved.memory.parent.is_some() => return Err(LoadError::DiffFile),
            MemBackendType::Uffd => {
                Chain { ancestors: saved.memory.parent.clone().into_iter().collect(), files: vec![] }
            }
            MemBackendType::File | MemBackendType::Lazy => Chain::of(&saved, memory)?,
        };
        let this = Parent { id: saved.id.0, state_path: absolute(path), memory_path: absolute(memory) };
        Ok(Self { lineage: Lineage::over(chain.ancestors, this), saved, memory: chain.files })
    }

    /// How the memory comes about.
    fn memory_plan(&self, load: &SnapshotLoad, backend: &MemBackend) -> Result<MemoryPlan, LoadError> {
        let huge_pages = self.huge_pages(load.huge_pages);
        let path = Path::new(&backend.backend_path);
        match backend.backend_type {
            MemBackendType::File => self.map(huge_pages),
            MemBackendType::Uffd => {
                Ok(MemoryPlan::Handed { backing: backing(huge_pages), socket: path.to_owned() })
            }
            MemBackendType::Lazy => self.serve(huge_pages, load.lazy.clone().unwrap_or_default()),
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

    fn map(&self, huge_pages: HugePages) -> Result<MemoryPlan, LoadError> {
        if huge_pages == HugePages::Hugetlb2M {
            return Err(LoadError::HugePagesFile);
        }
        let [(path, contents)] = &*self.memory else { return Err(LoadError::DiffFile) };
        Ok(MemoryPlan::File(mapped::open(path, contents)?))
    }

    fn serve(&self, huge_pages: HugePages, lazy: LazyOptions) -> Result<MemoryPlan, LoadError> {
        let pages = self.saved.memory.contents.pages();
        let stack = Stack::open(&self.memory, pages.bytes())?;
        let (source, reader) = (stack.reader(), stack.reader());
        let rate_mib_s = lazy.fill_mib_s.map(|rate| u32::try_from(rate).unwrap_or(u32::MAX));
        let fill = FillOptions {
            // Until the guest runs: the host's processors and the lock of its mappings are wanted for that.
            waits: true,
            everything: rate_mib_s != Some(0),
            rate_mib_s: rate_mib_s.and_then(NonZeroU32::new),
        };
        let backing = backing(huge_pages);
        // So that it can be saved while the guest runs.
        let write_protect = ServedMemory::can_protect(backing);
        let keeps = lazy.working_set.unwrap_or(true);
        let own = self.memory.last().filter(|_| keeps);
        let working_set = own.map(|(path, _)| Known::read(path, self.saved.id, pages.count));
        let record = keeps.then(RecordLimits::default);
        Ok(MemoryPlan::Served(Box::new(ServedPlan {
            foundation: Foundation::New(backing),
            source: Box::new(Reading::new(source)),
            reader: Some(Box::new(reader)),
            options: fault::Options { fill, write_protect, record, ..fault::Options::default() },
            again: Some(Box::new(move || Box::new(stack.reader()))),
            working_set,
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
    Ok(Chain::of(saved, path)?.files)
}

/// A snapshot and all that it lies over, the lowest first.
struct Chain {
    files: Vec<(PathBuf, Contents)>,
    /// Without the snapshot itself.
    ancestors: Vec<Parent>,
}

impl Chain {
    fn of(saved: &Saved, path: &Path) -> Result<Self, LoadError> {
        let mut files = vec![(file::memory_path(saved.id, path)?, saved.memory.contents.clone())];
        let (mut seen, mut ancestors) = (HashSet::from([saved.id.0]), Vec::new());
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
            let (saved, found) = find(&parent, &folder)?;
            folder = found.memory_path.parent().unwrap_or(Path::new("")).to_owned();
            files.push((file::memory_path(saved.id, &found.memory_path)?, saved.memory.contents));
            ancestors.push(found);
            below = saved.memory.parent;
        }
        files.reverse();
        ancestors.reverse();
        Ok(Self { files, ancestors })
    }
}

/// The snapshot that `parent` names, and where it is: where it was, or beside the diff in `folder`.
fn find(parent: &Parent, folder: &Path) -> Result<(Saved, Parent), LoadError> {
    let id = SnapshotId(parent.id);
    if parent.memory_path.as_os_str().is_empty() {
        return Err(LoadError::NoParentMemory { id: id.to_string() });
    }
    let beside = |path: &Path| path.file_name().map(|name| absolute(&folder.join(name)));
    let places = [
        Some((parent.state_path.clone(), parent.memory_path.clone())),
        beside(&parent.state_path).zip(beside(&parent.memory_path)),
    ];
    for (state_path, memory_path) in places.into_iter().flatten() {
        // What is at the place may be another snapshot by now.
        if let Ok(file) = file::read(&state_path)
            && file.header().id == id
        {
            return Ok((Saved::decode(&file)?, Parent { id: parent.id, state_path, memory_path }));
        }
    }
    Err(LoadError::NoParent { id: id.to_string(), path: parent.state_path.clone() })
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
