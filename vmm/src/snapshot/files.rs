//! `faultless snapshot`: a snapshot's files without a VM.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use api::cli::{SnapshotArgs, SnapshotOperation, table};
use memory::PageIndex;
use memory::image::{self, Stack, StackError, VerifyError};
use memory::source::{Content, ImageError, PageReader, SourceError};
use serde::Serialize;

use super::file::{self, Aside, AsideError, BuildError, FORMAT_VERSION, FileError, SnapshotId, StateFile};
use super::load::{LoadError, chain};
use super::mapped::open_unwaited;
use super::saved::{DecodeError, MemoryState, Saved};
use crate::error;

/// How much is copied at a time.
const COPY_BYTES: usize = 256 << 10;

/// Why nothing could be done with a snapshot's files.
#[derive(Debug, thiserror::Error)]
enum FilesError {
    #[error(transparent)]
    State(#[from] FileError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{}: {source}", path.display())]
    Verify { path: PathBuf, source: VerifyError },
    #[error(transparent)]
    Stack(#[from] StackError),
    #[error(transparent)]
    Place(#[from] AsideError),
    #[error(transparent)]
    Open(#[from] ImageError),
    #[error(transparent)]
    Read(#[from] SourceError),
    #[error("the memory file cannot be written: see that there is room for it")]
    Write(#[source] io::Error),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("cannot draw a random id for the snapshot")]
    Id(#[from] io::Error),
}

/// What is in a state file, for people and programs.
#[derive(Debug, Serialize)]
struct Inspection {
    id: String,
    format: String,
    architecture: String,
    vmm_version: String,
    instance_id: String,
    saved_unix_ms: u64,
    vcpu_count: usize,
    memory_mib: u64,
    /// What of it the memory file has.
    memory_file_mib: u64,
    processor: String,
    kernel: String,
    drives: Vec<Drive>,
    parent: Option<ParentFiles>,
    sections: Vec<SectionFacts>,
}

#[derive(Debug, Serialize)]
struct Drive {
    drive_id: String,
    path_on_host: Option<String>,
}

#[derive(Debug, Serialize)]
struct ParentFiles {
    id: String,
    state: PathBuf,
    memory: PathBuf,
}

#[derive(Debug, Serialize)]
struct SectionFacts {
    name: String,
    version: u16,
    bytes: usize,
}

impl Inspection {
    fn of(file: &StateFile) -> Result<Self, DecodeError> {
        let (header, saved) = (file.header(), Saved::decode(file)?);
        let parent = saved.memory.parent.map(|parent| ParentFiles {
            id: SnapshotId(parent.id).to_string(),
            state: parent.state_path,
            memory: parent.memory_path,
        });
        let drive =
            |drive: api::types::Drive| Drive { drive_id: drive.drive_id, path_on_host: drive.path_on_host };
        let section = |section: file::Section<'_>| SectionFacts {
            name: section.name.to_string(),
            version: section.version,
            bytes: section.body.len(),
        };
        Ok(Self {
            id: header.id.to_string(),
            format: header.version.to_string(),
            architecture: header.architecture.to_string(),
            vmm_version: saved.meta.vmm_version,
            instance_id: saved.meta.instance_id,
            saved_unix_ms: saved.meta.saved_unix_ms,
            vcpu_count: saved.vcpus.len(),
            memory_mib: saved.memory.contents.pages().bytes() >> 20,
            memory_file_mib: saved.memory.contents.data_pages() >> 8,
            processor: if saved.host.brand.is_empty() { saved.host.vendor } else { saved.host.brand },
            kernel: saved.host.kernel,
            drives: saved.config.drives.into_iter().map(drive).collect(),
            parent,
            sections: file.sections().map(section).collect(),
        })
    }
}

/// What was checked, or made.
#[derive(Debug, Serialize)]
struct Outcome {
    memory_files: usize,
    pages: u64,
}

/// Does what the arguments ask, and says what came of it.
#[must_use]
pub fn main(args: &SnapshotArgs) -> ExitCode {
    let done = match &args.operation {
        SnapshotOperation::Inspect { state } => inspect(state).map(|found| text(&found, args.json)),
        SnapshotOperation::Verify { state, memory } => {
            verify(state, memory).map(|outcome| text(&outcome, args.json))
        }
        SnapshotOperation::Rebase { state, memory, to_state, to_memory } => {
            rebase(state, memory, to_state, to_memory).map(|outcome| text(&outcome, args.json))
        }
    };
    print_or_explain(done)
}

/// Prints the version of a state file, or of those that are written, as Firecracker prints its own.
#[must_use]
pub fn tell_version(state: Option<&Path>) -> ExitCode {
    let version = state.map_or(Ok(FORMAT_VERSION), |state| Ok(file::read(state)?.header().version));
    print_or_explain(version.map(|version| format!("v{}.{}.0\n", version.major, version.minor)))
}

fn print_or_explain(done: Result<String, FilesError>) -> ExitCode {
    match done {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("faultless: {}", error::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn text(found: &impl Serialize, as_json: bool) -> String {
    let value = serde_json::to_value(found).expect("what is found has string keys only");
    if as_json { format!("{value:#}\n") } else { table::render(&value) }
}

fn inspect(state: &Path) -> Result<Inspection, FilesError> {
    Ok(Inspection::of(&file::read(state)?)?)
}

fn verify(state: &Path, memory: &Path) -> Result<Outcome, FilesError> {
    let saved = Saved::decode(&file::read(state)?)?;
    let files = chain(&saved, memory)?;
    let mut outcome = Outcome { memory_files: files.len(), pages: 0 };
    for (path, contents) in files {
        let pages = contents.data_pages();
        let file = open(&path)?;
        let verified = image::verify(&file, &contents, None);
        verified.map_err(|source| FilesError::Verify { path, source })?;
        outcome.pages += pages;
    }
    Ok(outcome)
}

/// Opens what can be a memory file.
fn open(path: &Path) -> Result<File, ImageError> {
    let (file, metadata) = open_unwaited(path)?;
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        return Err(ImageError::Kind { path: path.to_owned() });
    }
    Ok(file)
}

/// Writes what a stack of memory files shows to one file.
fn rebase(state: &Path, memory: &Path, to_state: &Path, to_memory: &Path) -> Result<Outcome, FilesError> {
    let saved = Saved::decode(&file::read(state)?)?;
    let layers = chain(&saved, memory)?;
    let stack = Stack::open(&layers, saved.memory.contents.pages().bytes())?;
    let id = SnapshotId::random()?;
    let (to_memory, to_state) = (Aside::create(to_memory)?, Aside::create(to_state)?);
    flatten(&stack, to_memory.file())?;
    let contents = stack.contents().clone();
    let pages = contents.data_pages();
    let memory = MemoryState { contents, parent: None, regions: saved.memory.regions.clone() };
    let whole = Saved { id, memory, ..saved };
    to_state.write_all(&whole.encode().finish()?)?;
    file::place(to_memory, to_state)?;
    Ok(Outcome { memory_files: layers.len(), pages })
}

/// Writes what `stack` shows, checked page by page; what it has no data of stays a hole.
fn flatten(stack: &Stack, file: &File) -> Result<(), FilesError> {
    let mut reader = stack.reader();
    let mut buffer = vec![0; COPY_BYTES];
    file.set_len(stack.contents().pages().bytes()).map_err(FilesError::Write)?;
    for data in stack.contents().data() {
        let mut rest = data;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(PageIndex::at_offset(COPY_BYTES as u64).0);
            let bytes = &mut buffer[..usize::try_from(now.bytes()).expect("it fits the buffer")];
            if reader.read(now, bytes)? == Content::Zero {
                bytes.fill(0);
            }
            file.write_all_at(bytes, now.start.offset()).map_err(FilesError::Write)?;
            rest = later;
        }
    }
    Ok(())
}
