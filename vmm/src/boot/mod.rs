//! What a guest is started from, as far as it is the same on every architecture: files and a command line.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use api::types::BootSource;
use linux_loader::cmdline::{self, Cmdline};

use crate::arch::host::layout;

/// The command line of a guest whose user gave none, as Firecracker's.
pub const COMMAND_LINE_DEFAULT: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux \
                                        i8042.dumbkbd swiotlb=noforce";

/// Why a command line was refused.
#[derive(Debug, thiserror::Error)]
pub enum CommandLineError {
    /// It holds a character that is not printable ASCII, or misuses the separator for init's arguments.
    #[error("{0}")]
    Text(cmdline::Error),
    /// It does not fit.
    #[error("it is longer than the {} bytes a kernel takes", layout::COMMAND_LINE_BYTES_MAX - 1)]
    TooLong,
}

impl From<cmdline::Error> for CommandLineError {
    fn from(error: cmdline::Error) -> Self {
        match error {
            cmdline::Error::TooLarge | cmdline::Error::InvalidCapacity => Self::TooLong,
            other => Self::Text(other),
        }
    }
}

/// Why a boot source was refused.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel's file.
    #[error("The kernel file cannot be opened: {0}")]
    Kernel(io::Error),
    /// The initrd's file.
    #[error("The initrd file cannot be opened due to invalid path or invalid permissions. {0}")]
    Initrd(io::Error),
    /// The command line.
    #[error("The kernel command line is invalid: {0}")]
    CommandLine(CommandLineError),
}

/// A boot source whose files are open: what was checked when it was set is what the guest is started from.
#[derive(Debug)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: File,
    /// The initrd, where there is one.
    pub initrd: Option<File>,
    /// The command line.
    pub command_line: Cmdline,
}

impl BootFiles {
    /// Opens the files that `source` names and checks its command line.
    ///
    /// # Errors
    ///
    /// [`BootError`], with what is wrong with which of them.
    pub fn open(source: &BootSource) -> Result<Self, BootError> {
        let kernel = open_file(&source.kernel_image_path).map_err(BootError::Kernel)?;
        let initrd = source.initrd_path.as_ref().map(open_file).transpose().map_err(BootError::Initrd)?;
        let text = source.boot_args.as_deref().unwrap_or(COMMAND_LINE_DEFAULT);
        // The library checks characters only of what is added later.
        if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(BootError::CommandLine(CommandLineError::Text(cmdline::Error::InvalidAscii)));
        }
        let command_line = Cmdline::try_from(text, layout::COMMAND_LINE_BYTES_MAX)
            .map_err(|error| BootError::CommandLine(error.into()))?;
        Ok(Self { kernel, initrd, command_line })
    }
}

/// Opens a regular file: a folder would open too and fail later, and a pipe would block.
pub(crate) fn open_file(path: impl AsRef<Path>) -> io::Result<File> {
    // Without waiting: opening a pipe would last until somebody writes to it.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(boot_args: String) -> Result<BootFiles, BootError> {
        let kernel = tempfile::NamedTempFile::new().unwrap();
        let kernel_image_path = kernel.path().display().to_string();
        BootFiles::open(&BootSource {
            kernel_image_path,
            boot_args: Some(boot_args),
            ..BootSource::default()
        })
    }

    #[test]
    fn the_command_line_has_a_limit_and_says_which() {
        let longest = layout::COMMAND_LINE_BYTES_MAX - 1;
        assert!(open("x".repeat(longest)).is_ok());
        for length in [longest + 1, longest + 2, 1 << 20] {
            let error = open("x".repeat(length)).unwrap_err();
            assert!(error.to_string().contains("longer than the 2047 bytes"), "{length}: {error}");
        }
    }

    #[test]
    fn a_command_line_is_ascii() {
        assert!(matches!(
            open("quiet \u{e9}".to_owned()),
            Err(BootError::CommandLine(CommandLineError::Text(_)))
        ));
    }

    #[test]
    fn what_is_no_file_is_no_kernel() {
        let open = |path: &str| {
            BootFiles::open(&BootSource { kernel_image_path: path.to_owned(), ..BootSource::default() })
        };
        for path in ["/", "/dev/zero", "/nonexistent"] {
            assert!(matches!(open(path), Err(BootError::Kernel(_))), "{path}");
        }
    }
}
