//! From a VM that stands still to two files.
//!
//! ```text
//!   take   ── vCPUs, platform, devices ──▶ Taken            the VM may go on, but for its memory
//!   changes ── take ──▶ what a diff holds
//!   write  ── memory ──▶ memory file, aside ── state file, aside ── place ──▶ both where they belong
//! ```
//!
//! Invariant: whatever fails, and wherever, the snapshot that was there before is there still, and nothing else is.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use api::types::{SnapshotCreate, VmConfig};
use memory::capture::{BeginError, CaptureError};
use memory::dirty::TrackError;
use memory::image::{Contents, WriteError};
use memory::{GuestRam, RamRange};
use rustix::process::{Resource, getrlimit};

use super::file::{self, Aside, AsideError, BuildError, SnapshotId};
use super::saved::{MemoryState, Meta, Parent, Saved};
use crate::arch::host::state::{HostFacts, PlatformState, StateError, VcpuState};
use crate::machine::devices::DevicesState;
use crate::machine::memory::live::LiveError;
use crate::machine::vm::VmError;

/// Why a VM was not saved. It is as it was, and so are files that were there.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A part of the VM gave no state.
    #[error("the microVM's state cannot be had")]
    Vm(#[from] VmError),
    /// KVM gave no state of the machine as a whole.
    #[error("the microVM's state cannot be had")]
    State(#[from] StateError),
    /// One of the files cannot be written.
    #[error(transparent)]
    File(#[from] AsideError),
    /// What was written cannot be told.
    #[error("the pages that were written cannot be had")]
    Changes(#[from] TrackError),
    /// The memory file.
    #[error("the memory file cannot be written")]
    Memory(#[from] WriteError),
    /// The memory cannot be saved while the guest runs.
    #[error(transparent)]
    Live(#[from] LiveError),
    /// The memory of a guest that runs could not be held at one moment.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// The memory of a guest that runs.
    #[error("the memory file cannot be written")]
    Capture(#[from] CaptureError),
    /// A diff of a guest that runs.
    #[error("a live snapshot is a full one: leave `snapshot_type` out, or pause the microVM first")]
    LiveDiff,
    /// There is one already.
    #[error("a snapshot is being written: wait for its answer")]
    Busy,
    /// The guest stands still until it is saved.
    #[error("the microVM is being saved, and goes on when that is done: wait for its answer")]
    Still,
    /// The thread that saved it panicked.
    #[error("writing the snapshot has failed for a reason of its own: this is a bug, so please report it")]
    Panicked,
    /// There is no thread for it.
    #[error("cannot start a thread that saves the microVM")]
    Thread(#[source] std::io::Error),
    /// There is too much state.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The process may not write so much.
    #[error(
        "a file of the snapshot would have {bytes} bytes, and this process may write files of {limit}: raise its limit, \
         with `prlimit --fsize` for example"
    )]
    Limit {
        /// How long it would be.
        bytes: u64,
        /// How long it may be.
        limit: u64,
    },
    /// There is no id for it.
    #[error("cannot draw a random id for the snapshot")]
    Id(#[from] std::io::Error),
}

/// A VM but for its memory, as it was at one moment.
#[derive(Debug)]
pub struct Taken {
    /// What it is configured as.
    pub config: VmConfig,
    /// The host.
    pub host: HostFacts,
    /// Interrupt controllers, timer, clock.
    pub platform: PlatformState,
    /// The vCPUs.
    pub vcpus: Vec<VcpuState>,
    /// The devices.
    pub devices: DevicesState,
}

/// The two files of a snapshot on their way, and what names them.
#[derive(Debug)]
pub struct Files {
    id: SnapshotId,
    memory: Aside,
    state: Aside,
}

impl Files {
    /// Begins both files, beside what may be at their places.
    ///
    /// # Errors
    ///
    /// [`SaveError::File`] where one of them cannot be, or [`SaveError::Id`].
    pub fn begin(create: &SnapshotCreate) -> Result<Self, SaveError> {
        let memory = Aside::create(Path::new(&create.mem_file_path))?;
        let state = Aside::create(Path::new(&create.snapshot_path))?;
        Ok(Self { id: SnapshotId::random()?, memory, state })
    }

    /// Refuses a file of `bytes` that is longer than this process may write: the kernel ends one that tries (SIGXFSZ).
    ///
    /// # Errors
    ///
    /// [`SaveError::Limit`].
    pub fn check_limit(&self, bytes: u64) -> Result<(), SaveError> {
        match getrlimit(Resource::Fsize).current {
            Some(limit) if bytes > limit => Err(SaveError::Limit { bytes, limit }),
            _ => Ok(()),
        }
    }

    /// The memory file, to be written.
    #[must_use]
    pub fn memory(&self) -> &std::fs::File {
        self.memory.file()
    }

    /// Writes the state file and brings both to their places; gives what a diff over this snapshot names.
    ///
    /// # Errors
    ///
    /// [`SaveError`].
    pub fn finish(
        self,
        taken: Taken,
        instance_id: &str,
        ranges: &[RamRange],
        contents: Contents,
        parent: Option<Parent>,
    ) -> Result<Parent, SaveError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let regions = ranges.iter().map(|range| (range.gpa.0, range.size_bytes)).collect();
        let saved = Saved {
            id: self.id,
            meta: Meta {
                vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
                instance_id: instance_id.to_owned(),
                saved_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            },
            config: taken.config,
            host: taken.host,
            platform: taken.platform,
            vcpus: taken.vcpus,
            devices: taken.devices,
            memory: MemoryState { regions, contents, parent },
        };
        let state = saved.encode().finish()?;
        self.check_limit(state.len() as u64)?;
        self.state.write_all(&state)?;
        let (state_path, memory_path) = (absolute(&self.state)?, absolute(&self.memory)?);
        file::place(self.memory, self.state)?;
        Ok(Parent { id: self.id.0, state_path, memory_path })
    }
}

/// A place as it can be found from elsewhere.
fn absolute(aside: &Aside) -> std::io::Result<PathBuf> {
    std::path::absolute(aside.target())
}

/// The regions of `ram`.
#[must_use]
pub fn ranges(ram: &GuestRam) -> Vec<RamRange> {
    ram.regions().iter().map(memory::ram::RamRegion::range).collect()
}
