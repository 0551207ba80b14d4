//! `faultless ctl snapshot`.

use crate::Request;
use crate::types::{
    DriveOverride, LazyOptions, MemBackend, MemBackendType, RestoredHugePages, SerialOverride,
    SnapshotCreate, SnapshotHandler, SnapshotLoad, SnapshotType,
};
use clap::builder::PossibleValue;
use clap::{Args, Subcommand, ValueEnum};

/// Save the machine to files, or go on from files.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum SnapshotCommand {
    /// Save the machine; paused, or live while it goes on.
    Create {
        /// The state file that is written.
        state: String,
        /// The memory file that is written.
        memory: String,
        /// Save only what was written since the machine was last saved or loaded.
        #[arg(long)]
        diff: bool,
        /// Let the guest go on while its memory is written.
        #[arg(long)]
        live: bool,
    },
    /// Go on from the files of a machine.
    Load(LoadArgs),
    /// Have another process serve the memory, in place of one that has gone.
    Handler {
        /// The socket that it listens on.
        socket: String,
    },
}

/// How to go on from files.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct LoadArgs {
    /// The state file.
    state: String,
    /// The memory file; with `--backend uffd`, the socket of the process that serves it.
    memory: String,
    /// Who serves the memory.
    #[arg(long, value_enum, default_value = "lazy", ignore_case = true)]
    backend: MemBackendType,
    /// Let the guest run at once.
    #[arg(long)]
    resume: bool,
    /// Track which pages the guest writes, for diff snapshots.
    #[arg(long)]
    track_dirty_pages: bool,
    /// Let the guest's clock go on at the time it is, and not where it stopped.
    #[arg(long)]
    clock_realtime: bool,
    /// What backs the memory.
    #[arg(long, value_name = "KIND", default_value = "snapshot", ignore_case = true)]
    huge_pages: RestoredHugePages,
    /// Another file for a drive; repeat for more.
    #[arg(long = "drive", value_name = "ID=PATH", value_parser = parse_drive)]
    drives: Vec<DriveOverride>,
    /// File or named pipe that gets the guest's output.
    #[arg(long, value_name = "PATH")]
    serial_out_path: Option<String>,
    /// How fast memory that nobody asks for is read, in MiB each second; 0 leaves it until it is wanted.
    #[arg(long, value_name = "MIB")]
    fill_mib_s: Option<u64>,
    /// Neither use nor record which pages are wanted first.
    #[arg(long)]
    no_working_set: bool,
}

impl SnapshotCommand {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Create { state, memory, diff, live } => Request::CreateSnapshot(SnapshotCreate {
                snapshot_type: if diff { SnapshotType::Diff } else { SnapshotType::Full },
                snapshot_path: state,
                mem_file_path: memory,
                live,
            }),
            Self::Handler { socket } => Request::PutSnapshotHandler(SnapshotHandler { backend_path: socket }),
            Self::Load(args) => Request::LoadSnapshot(Box::new(args.body())),
        }
    }
}

impl LoadArgs {
    fn body(self) -> SnapshotLoad {
        let lazy =
            LazyOptions { fill_mib_s: self.fill_mib_s, working_set: self.no_working_set.then_some(false) };
        SnapshotLoad {
            snapshot_path: self.state,
            mem_backend: Some(MemBackend { backend_type: self.backend, backend_path: self.memory }),
            track_dirty_pages: self.track_dirty_pages,
            resume_vm: self.resume,
            clock_realtime: self.clock_realtime,
            huge_pages: self.huge_pages,
            drive_overrides: self.drives,
            serial_override: self.serial_out_path.map(|path| SerialOverride { serial_out_path: Some(path) }),
            lazy: (lazy != LazyOptions::default()).then_some(lazy),
            ..SnapshotLoad::default()
        }
    }
}

impl ValueEnum for MemBackendType {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Lazy, Self::File, Self::Uffd]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Lazy => PossibleValue::new("lazy").help("the VMM, page by page as they are wanted"),
            Self::File => PossibleValue::new("file").help("the memory file is mapped"),
            Self::Uffd => PossibleValue::new("uffd").help("another process, on a socket"),
        })
    }
}

impl ValueEnum for RestoredHugePages {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Snapshot, Self::None, Self::Transparent, Self::Hugetlb2M]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Snapshot => PossibleValue::new("snapshot").help("what backed it when it was saved"),
            Self::None => PossibleValue::new("none").help("pages of the host's base size"),
            Self::Transparent => {
                PossibleValue::new("transparent").help("huge pages where the host has them free")
            }
            Self::Hugetlb2M => PossibleValue::new("2M").help("reserved pages of 2 MiB from hugetlbfs"),
        })
    }
}

/// Reads `ID=PATH`.
fn parse_drive(text: &str) -> Result<DriveOverride, String> {
    match text.split_once('=') {
        Some((id, path)) if !id.is_empty() && !path.is_empty() => {
            Ok(DriveOverride { drive_id: id.to_owned(), path_on_host: path.to_owned() })
        }
        _ => Err("write ID=PATH, like rootfs=/disks/clone-7.ext4".to_owned()),
    }
}
