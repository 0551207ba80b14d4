//! Files that are written aside and come to their place whole.
//!
//! ```text
//!   .NAME.partial     written, synced          locked by who writes it: a lock dies with its process
//!        │ rename
//!        ▼
//!   NAME              the old file until then, the new one from then on
//! ```
//!
//! What a dead process left is removed by the next one that writes to the same path; a lock that is held says that
//! somebody is alive and writing. A file without a name (`O_TMPFILE`) would leave nothing behind, but can only be
//! given a name that is free, and so never replaces a file.
//!
//! The file is readable by its user only: a guest's memory is full of secrets. A link at the path is replaced, and
//! what it points to is left alone.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How often a file is made until it is ours: another process may take it for a leftover before it is locked.
const CREATE_TRIES: u32 = 8;

/// The longest name of a file, in bytes: names that are made from it have to fit into 255 (`NAME_MAX`).
const NAME_BYTES_MAX: usize = 200;

/// Why a file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum AsideError {
    /// The path names no file that can be.
    #[error("{} does not end in a file name of at most {NAME_BYTES_MAX} bytes of UTF-8: name a file", path.display())]
    Name {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// What is there is not a file.
    #[error("{} exists and is not a regular file: choose another path", path.display())]
    NotAFile {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// Somebody writes to the same path: another process, or this one, for another file.
    #[error("{} is being written already: wait for that, or choose another path", path.display())]
    InUse {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The host refused a step.
    #[error("cannot {step} {}: check that its folder is there, may be written to and has room", path.display())]
    Host {
        /// What was being done.
        step: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

impl AsideError {
    pub(super) fn host(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { step, path: path.to_owned(), source }
    }
}

/// A file that is written aside. It is removed on drop unless it was brought to its place.
#[derive(Debug)]
pub struct Aside {
    file: File,
    names: Names,
    placed: bool,
}

/// The names of a file and of those that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub folder: PathBuf,
    /// The name in the folder.
    pub name: String,
}

impl Names {
    pub(super) fn of(path: &Path) -> Result<Self, AsideError> {
        let name =
            path.file_name().and_then(|name| name.to_str()).filter(|name| name.len() <= NAME_BYTES_MAX);
        let folder = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let no_name = || AsideError::Name { path: path.to_owned() };
        Ok(Self { folder: folder.to_owned(), name: name.ok_or_else(no_name)?.to_owned() })
    }

    pub(super) fn target(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    fn partial(&self) -> PathBuf {
        self.folder.join(format!(".{}.partial", self.name))
    }
}

impl Aside {
    /// An empty file beside `target`, which need not exist.
    ///
    /// # Errors
    ///
    /// [`AsideError`] when there is something else at the path, somebody else writes there, or the host refuses.
    pub fn create(target: &Path) -> Result<Self, AsideError> {
        let names = Names::of(target)?;
        match fs::metadata(target) {
            Ok(there) if !there.is_file() => return Err(AsideError::NotAFile { path: target.to_owned() }),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(AsideError::host("look at", target)(error));
            }
            _ => {}
        }
        let file = create_locked(&names)?;
        Ok(Self { file, names, placed: false })
    }

    /// The file, to be written to.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it will be.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        self.names.target()
    }

    /// Writes `bytes` where the file's position is.
    ///
    /// # Errors
    ///
    /// [`AsideError::Host`].
    pub fn write_all(&self, bytes: &[u8]) -> Result<(), AsideError> {
        (&self.file).write_all(bytes).map_err(AsideError::host("write", &self.target()))
    }

    /// Brings a file that stands for itself to its place. Files that belong together have [`place`](super::place).
    ///
    /// # Errors
    ///
    /// [`AsideError::Host`]. What was at the place before is still there, unless its folder could not be synced.
    pub fn commit(mut self) -> Result<(), AsideError> {
        self.sync()?;
        self.rename()?;
        self.sync_folder()
    }

    /// The same for a file that may be lost with the host: it is whole, or of no use and known to be, or not there.
    ///
    /// # Errors
    ///
    /// [`AsideError::Host`]. What was at the place before is still there.
    pub fn commit_unsynced(mut self) -> Result<(), AsideError> {
        self.rename()
    }

    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    pub(super) fn sync(&self) -> Result<(), AsideError> {
        self.file.sync_all().map_err(AsideError::host("sync", &self.target()))
    }

    pub(super) fn rename(&mut self) -> Result<(), AsideError> {
        let target = self.target();
        fs::rename(self.names.partial(), &target).map_err(AsideError::host("replace", &target))?;
        self.placed = true;
        Ok(())
    }

    pub(super) fn sync_folder(&self) -> Result<(), AsideError> {
        let synced = File::open(&self.names.folder).and_then(|folder| folder.sync_all());
        synced.map_err(AsideError::host("sync", &self.names.folder))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let partial = self.names.partial();
        if !self.placed
            && let Err(error) = fs::remove_file(&partial)
        {
            tracing::warn!(path = %partial.display(), %error, "cannot remove an unfinished file");
        }
    }
}

/// Makes the file that is written to, and locks it.
fn create_locked(names: &Names) -> Result<File, AsideError> {
    let (target, partial) = (names.target(), names.partial());
    let create = AsideError::host;
    for _ in 0..CREATE_TRIES {
        let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&partial);
        match made {
            Ok(file) => {
                let is_locked = try_lock(&file).map_err(create("lock", &target))?;
                let links = file.metadata().map_err(create("look at", &target))?.nlink();
                // Another process may have taken it for a leftover.
                if is_locked && links > 0 {
                    return Ok(file);
                }
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if !remove_leftover(&partial).map_err(create("remove what is left of", &target))? {
                    return Err(AsideError::InUse { path: target });
                }
            }
            Err(error) => return Err(create("create", &target)(error)),
        }
    }
    Err(AsideError::InUse { path: target })
}

/// Whether the lock on `file` is ours now. Where there are no locks the last one to write wins: the file that was
/// written aside before has lost its name, and cannot be brought to its place.
fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes `partial` if nobody is alive who writes to it, and says whether it may be made anew.
fn remove_leftover(partial: &Path) -> io::Result<bool> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let gone = |error: &io::Error| error.kind() == ErrorKind::NotFound;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(partial) {
        Ok(file) => file,
        Err(error) if gone(&error) => return Ok(true),
        Err(error) => return Err(error),
    };
    if !try_lock(&file)? {
        return Ok(false);
    }
    // Under the lock: who has it is the only one who removes or renames the file.
    match fs::symlink_metadata(partial) {
        Ok(named) if is_same(&named, &file.metadata()?) => fs::remove_file(partial).map(|()| true),
        Ok(_) => Ok(true),
        Err(error) if gone(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}
