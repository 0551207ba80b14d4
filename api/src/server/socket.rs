//! Claiming the path of the API socket, and giving it back.
//!
//! A UNIX socket outlives its process as a file. A path is taken if someone answers there, and a leftover if
//! connecting is refused; only a leftover *socket* is ever removed.
//!
//! Deciding, removing and binding are separate steps, as are a server's `bind` and `listen`, between which its socket
//! looks like a leftover. So all of them happen under a lock on the folder, which leaves no file behind and which
//! the kernel takes back from a process that dies.

use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// How often the folder's lock is tried, and how long is waited in between: 2 s in all, where it is held for
/// microseconds.
const LOCK_TRIES: u32 = 400;
const LOCK_WAIT: Duration = Duration::from_millis(5);

/// Why a path cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process answers there.
    #[error("{} is in use by a running process: stop it, or choose another path with --api-sock", path.display())]
    InUse {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The path is a file or folder, which is not ours to remove.
    #[error("{} exists and is not a socket: move it away, or choose another path with --api-sock", path.display())]
    NotASocket {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The folder cannot be opened or locked.
    #[error("cannot use the folder {}: {source}; create it, or choose another path with --api-sock", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The socket cannot be made, or what lies at its path cannot be examined or removed.
    #[error("cannot listen on {}: {source}; choose another path with --api-sock", path.display())]
    Socket {
        /// The path that was asked for.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A listening socket, and its file, which is removed on drop if it is still ours.
#[derive(Debug)]
pub struct BoundSocket {
    listener: UnixListener,
    path: PathBuf,
    identity: Identity,
}

/// Which file a path names, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(file: &Metadata) -> Self {
        Self { device: file.dev(), inode: file.ino() }
    }
}

/// Listens on `path`, replacing a socket that a dead process left there.
pub fn bind(path: impl Into<PathBuf>) -> Result<BoundSocket, BindError> {
    let path = path.into();
    let _folder = lock_folder(&path)?;
    remove_leftover(&path)?;
    let socket = |source| BindError::Socket { path: path.clone(), source };
    let listener = UnixListener::bind(&path).map_err(socket)?;
    let identity = fs::symlink_metadata(&path).map(|file| Identity::of(&file)).map_err(socket)?;
    Ok(BoundSocket { listener, path, identity })
}

impl BoundSocket {
    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listener for [`serve`](super::serve), to be called within a runtime.
    ///
    /// This keeps its own handle: as long as it lives, nobody can take the file for a leftover, so the file that
    /// is removed in the end is ours.
    pub fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        tokio::net::UnixListener::from_std(listener)
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|file| Identity::of(&file) == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the API socket");
        }
    }
}

/// Takes the lock on the folder that holds `path`.
fn lock_folder(path: &Path) -> Result<File, BindError> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let failed = |source| BindError::Folder { path: folder.to_owned(), source };
    let file = File::open(folder).map_err(failed)?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => sleep(LOCK_WAIT),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
    Err(failed(io::Error::new(ErrorKind::TimedOut, "another process keeps it locked")))
}

/// Removes what lies at `path` if it is a socket on which nobody listens. The folder is locked.
fn remove_leftover(path: &Path) -> Result<(), BindError> {
    let socket = |source| BindError::Socket { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {}
        Ok(_) => {
            return Err(BindError::NotASocket { path: path.to_owned() });
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(socket(error)),
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing the socket of a process that is gone");
            fs::remove_file(path).map_err(socket)
        }
        Err(error) => Err(socket(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::thread;
    use tempfile::tempdir;

    fn leave_behind(path: &Path) {
        drop(UnixListener::bind(path).unwrap());
        assert!(path.exists());
    }

    #[test]
    fn a_fresh_path_is_bound_and_removed_again() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let socket = bind(&path).unwrap();
        assert_eq!(socket.path(), path);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_path_in_use_is_refused_and_left_alone() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let _alive = bind(&path).unwrap();
        let error = bind(&path).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }) && error.to_string().contains("running process"));
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_leftover_socket_is_replaced() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("api.sock");
        leave_behind(&path);
        let _socket = bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn files_folders_and_links_are_never_removed() {
        let folder = tempdir().unwrap();
        let file = folder.path().join("precious");
        fs::write(&file, "data").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let subfolder = folder.path().join("folder");
        fs::create_dir(&subfolder).unwrap();
        for path in [&file, &link, &subfolder] {
            assert!(matches!(bind(path).unwrap_err(), BindError::NotASocket { .. }), "{path:?}");
        }
        assert_eq!(fs::read_to_string(&link).unwrap(), "data");
    }

    #[test]
    fn a_file_that_replaced_ours_survives_us() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let socket = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "not ours").unwrap();
        drop(socket);
        assert_eq!(fs::read_to_string(&path).unwrap(), "not ours");
    }

    #[test]
    fn a_missing_folder_and_a_long_path_are_explained() {
        let folder = tempdir().unwrap();
        let missing = bind(folder.path().join("no/api.sock")).unwrap_err();
        assert!(matches!(missing, BindError::Folder { .. }) && missing.to_string().contains("create it"));
        let long = bind(folder.path().join("a".repeat(200))).unwrap_err();
        assert!(long.to_string().contains("cannot listen"), "{long}");
    }

    #[test]
    fn of_many_that_claim_a_leftover_one_wins() {
        const CLAIMANTS: usize = 8;
        let folder = tempdir().unwrap();
        let path = folder.path().join("api.sock");
        for _ in 0..20 {
            leave_behind(&path);
            let start = Barrier::new(CLAIMANTS);
            let results: Vec<_> = thread::scope(|scope| {
                let claim = || {
                    start.wait();
                    bind(&path)
                };
                let claimants: Vec<_> = (0..CLAIMANTS).map(|_| scope.spawn(claim)).collect();
                claimants.into_iter().map(|claimant| claimant.join().unwrap()).collect()
            });
            assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
            UnixStream::connect(&path).unwrap();
        }
    }
}
