//! The file or block device behind a drive: opened, locked and measured.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The unit in which virtio counts a disk, in bytes, whatever its blocks are.
pub(super) const SECTOR_BYTES: u64 = 512;

/// The length of a device's serial number, in bytes.
pub(super) const ID_BYTES: usize = 20;

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened.
    #[error("cannot open the drive's file {}: {source}", path.display())]
    Open {
        /// Where it should be.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// It is a directory.
    #[error("the drive's path {} is a directory: give a disk image or a block device", path.display())]
    Directory {
        /// The path.
        path: PathBuf,
    },
    /// It is neither a file nor a block device.
    #[error("the drive's path {} is neither a file nor a block device", path.display())]
    NotADisk {
        /// The path.
        path: PathBuf,
    },
    /// It is in use.
    #[error(
        "the drive's file {} is in use by another drive or process: \
         a disk can be written by one, or shared read-only",
        path.display()
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The host refused one step.
    #[error("cannot {step} the drive's file {}: {source}", path.display())]
    Host {
        /// What was being done.
        step: &'static str,
        /// The path.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

/// A disk. It is locked from [`Disk::lock`] until it is dropped.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    path: PathBuf,
    read_only: bool,
    sectors: u64,
    id: [u8; ID_BYTES],
    /// Device and inode: two disks that have the same are the same.
    identity: (u64, u64),
}

impl Disk {
    /// Opens and locks the disk at `path`.
    pub(super) fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let disk = Self::open_unlocked(path, read_only)?;
        disk.lock()?;
        Ok(disk)
    }

    /// A disk whose reads end when a test says so: `pipe` is its reading end.
    #[cfg(test)]
    pub(super) fn of_pipe(pipe: io::PipeReader, sectors: u64) -> Self {
        let file = File::from(std::os::fd::OwnedFd::from(pipe));
        Self { file, path: "pipe".into(), read_only: true, sectors, id: [0; ID_BYTES], identity: (0, 0) }
    }

    /// Opens the disk at `path` without a lock, to find out what it is.
    pub(super) fn open_unlocked(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        // Opening a FIFO would wait for its other side without O_NONBLOCK.
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let opened = OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path);
        let path_buf = || path.to_owned();
        let file = opened.map_err(|source| match source.kind() {
            ErrorKind::IsADirectory => DiskError::Directory { path: path_buf() },
            _ => DiskError::Open { path: path_buf(), source },
        })?;
        let host = |step| move |source| DiskError::Host { step, path: path.to_owned(), source };
        let metadata = file.metadata().map_err(host("examine"))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(DiskError::Directory { path: path_buf() });
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::NotADisk { path: path_buf() });
        }
        // On a disk the flag has io_uring answer EAGAIN, on kernels and disks that cannot do without waiting.
        rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty()).map_err(|error| DiskError::Host {
            step: "prepare",
            path: path_buf(),
            source: error.into(),
        })?;
        let sectors = measure(&file, path)?;
        let identity =
            if kind.is_block_device() { (0, metadata.rdev()) } else { (metadata.dev(), metadata.ino()) };
        Ok(Self { file, path: path_buf(), read_only, sectors, id: id_of(&metadata), identity })
    }

    /// Locks the disk: for itself, or with others when it is read-only.
    pub(super) fn lock(&self) -> Result<(), DiskError> {
        let locked = if self.read_only { self.file.try_lock_shared() } else { self.file.try_lock() };
        match locked {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => Err(DiskError::InUse { path: self.path.clone() }),
            // There are file systems without locks. Their disks can be used; only nobody is warned off.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                tracing::warn!(path = %self.path.display(), "the drive's file system has no locks");
                Ok(())
            }
            Err(TryLockError::Error(source)) => {
                Err(DiskError::Host { step: "lock", path: self.path.clone(), source })
            }
        }
    }

    /// Whether this is the same disk as `other`.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Takes over the name and size under which the same disk was found again. The lock stays.
    pub(super) fn refresh_from(&mut self, found: Self) {
        self.path = found.path;
        self.sectors = found.sectors;
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    /// The capacity, in sectors of 512 bytes.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The serial number.
    pub(super) fn id(&self) -> [u8; ID_BYTES] {
        self.id
    }

    pub(super) fn set_id(&mut self, id: [u8; ID_BYTES]) {
        self.id = id;
    }

    /// Where `bytes` at `sector` are in the file, in bytes, or nothing when they are not all on the disk.
    pub(super) fn locate(&self, sector: u64, bytes: u64) -> Option<u64> {
        let end = sector.checked_add(bytes.div_ceil(SECTOR_BYTES))?;
        (end <= self.sectors).then(|| sector * SECTOR_BYTES)
    }
}

/// The size of a file or block device in sectors: for both, where its end is.
fn measure(mut file: &File, path: &Path) -> Result<u64, DiskError> {
    let end = file.seek(SeekFrom::End(0));
    let bytes = end.map_err(|source| DiskError::Host { step: "measure", path: path.to_owned(), source })?;
    if !bytes.is_multiple_of(SECTOR_BYTES) {
        let path = path.display();
        tracing::warn!(%path, bytes, "the drive's size is no multiple of 512 bytes: the guest will not see the rest");
    }
    Ok(bytes / SECTOR_BYTES)
}

/// The serial number of a disk, as Firecracker makes it: what identifies the file on this host, cut to 20 bytes.
fn id_of(metadata: &Metadata) -> [u8; ID_BYTES] {
    let text = format!("{}{}{}", metadata.dev(), metadata.rdev(), metadata.ino());
    let mut id = [0; ID_BYTES];
    let length = text.len().min(ID_BYTES);
    id[..length].copy_from_slice(&text.as_bytes()[..length]);
    id
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn image(bytes: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![0; bytes]).unwrap();
        file
    }

    #[test]
    fn a_disk_is_not_left_in_the_mode_it_was_opened_in() {
        let disk = Disk::open_unlocked(image(512).path(), true).unwrap();
        assert!(!rustix::fs::fcntl_getfl(&disk.file).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    }

    #[test]
    fn capacity_is_in_whole_sectors_and_the_id_names_the_file() {
        let image = image(512 * 3 + 100);
        let disk = Disk::open(image.path(), false).unwrap();
        assert_eq!(disk.sectors(), 3);
        let metadata = image.as_file().metadata().unwrap();
        let id = format!("{}{}{}", metadata.dev(), metadata.rdev(), metadata.ino());
        assert!(disk.id().starts_with(&id.as_bytes()[..id.len().min(ID_BYTES)]));
    }

    #[test]
    fn what_is_past_the_end_is_not_located() {
        let image = image(512 * 4);
        let disk = Disk::open(image.path(), true).unwrap();
        assert_eq!(disk.locate(0, 2048), Some(0));
        assert_eq!(disk.locate(3, 512), Some(1536));
        assert_eq!(disk.locate(3, 513), None);
        assert_eq!(disk.locate(4, 0), Some(2048));
        assert_eq!(disk.locate(4, 512), None);
        assert_eq!(disk.locate(u64::MAX, 512), None);
        assert_eq!(disk.locate(1, u64::MAX), None);
    }

    #[test]
    fn a_disk_is_written_by_one_or_read_by_many() {
        let image = image(512);
        let writer = Disk::open(image.path(), false).unwrap();
        for read_only in [false, true] {
            let refused = Disk::open(image.path(), read_only).unwrap_err();
            assert!(matches!(refused, DiskError::InUse { .. }));
            assert!(refused.to_string().contains(image.path().to_str().unwrap()));
        }
        drop(writer);
        let _readers = [Disk::open(image.path(), true).unwrap(), Disk::open(image.path(), true).unwrap()];
        assert!(matches!(Disk::open(image.path(), false), Err(DiskError::InUse { .. })));
    }

    #[test]
    fn what_is_no_disk_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for read_only in [false, true] {
            let refused = Disk::open(folder.path(), read_only);
            assert!(matches!(refused, Err(DiskError::Directory { .. })), "{refused:?}");
            let refused = Disk::open(Path::new("/dev/null"), read_only);
            assert!(matches!(refused, Err(DiskError::NotADisk { .. })), "{refused:?}");
            let missing = folder.path().join("missing.img");
            let refused = Disk::open(&missing, read_only).unwrap_err();
            assert!(matches!(refused, DiskError::Open { .. }));
            assert!(refused.to_string().contains("missing.img"), "{refused}");
        }
    }
}
