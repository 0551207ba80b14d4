//! The files of an image, opened once more for reading past the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::source::buffer::PageBuffer;
use crate::source::image::Image;

/// Why an image cannot be read past the page cache.
#[derive(Debug, thiserror::Error)]
pub enum DirectError {
    /// The host has no `io_uring`, or does not let this process have one.
    #[error("the host gives no io_uring: read the image through the page cache")]
    NoIoUring(#[source] io::Error),
    /// The file system cannot do without the page cache.
    #[error(
        "memory file {path} cannot be read past the page cache (O_DIRECT): read it through the page cache"
    )]
    NoDirect {
        /// Which.
        path: PathBuf,
        /// The answer of the host.
        source: io::Error,
    },
    /// A file cannot be opened a second time, or not be read.
    #[error("memory file {path} cannot be read a second time: leave it where it is while it is in use")]
    Open {
        /// Which.
        path: PathBuf,
        /// The answer of the host.
        source: io::Error,
    },
    /// Another file has its name now.
    #[error("memory file {path} was replaced while it was opened: open the image again")]
    Replaced {
        /// Which.
        path: PathBuf,
    },
}

pub(super) fn open(image: &Image) -> Result<Vec<File>, DirectError> {
    image.files().map(|(path, identity)| open_file(path, identity)).collect()
}

fn open_file(path: &Path, identity: (u64, u64)) -> Result<File, DirectError> {
    let refused = |source| refused(path, source);
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).map_err(refused)?;
    let metadata = file.metadata().map_err(refused)?;
    if (metadata.dev(), metadata.ino()) != identity {
        return Err(DirectError::Replaced { path: path.to_owned() });
    }
    // Some file systems open such a file and refuse to read it.
    file.read_at(PageBuffer::new(1).first_mut(1), 0).map_err(refused)?;
    Ok(file)
}

fn refused(path: &Path, source: io::Error) -> DirectError {
    let path = path.to_owned();
    match source.raw_os_error() {
        Some(libc::EINVAL | libc::EOPNOTSUPP) => DirectError::NoDirect { path, source },
        _ => DirectError::Open { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_cannot_is_told_from_a_file_that_is_gone() {
        let refused = |errno| refused(Path::new("base"), io::Error::from_raw_os_error(errno));
        assert!(matches!(refused(libc::EINVAL), DirectError::NoDirect { .. }));
        assert!(matches!(refused(libc::ENOENT), DirectError::Open { .. }));
    }

    #[test]
    fn another_file_of_the_same_name_is_not_read() {
        let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let path = dir.path().join("base");
        std::fs::write(&path, [1; 4096]).unwrap();
        let image = Image::open(&[&path], 4096).unwrap();
        assert_eq!(open(&image).unwrap().len(), 1);
        std::fs::write(dir.path().join("new"), [2; 4096]).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(matches!(open(&image), Err(DirectError::Replaced { .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(open(&image), Err(DirectError::Open { .. })));
    }
}
