//! Getting a userfaultfd that takes the kernel's own faults, which is where KVM's come from.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::features::Features;
use super::ioctl;

/// How a userfaultfd was had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// Through `/dev/userfaultfd`, whose file mode decides who may (Linux 6.1).
    Device,
    /// Through the system call, which wants `CAP_SYS_PTRACE` or `vm.unprivileged_userfaultfd=1`.
    Syscall,
}

/// Why there is no userfaultfd.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither way gives one.
    #[error(
        "no permission for userfaultfd: /dev/userfaultfd says {device}, the system call {syscall}; \
         `setfacl -m u:$USER:rw /dev/userfaultfd` (Linux 6.1) or `sysctl vm.unprivileged_userfaultfd=1` gives it"
    )]
    NotPermitted {
        /// The answer to opening or using the device.
        device: io::Error,
        /// The answer to the system call.
        syscall: io::Error,
    },
    /// This kernel cannot do what is needed.
    #[error("this kernel's userfaultfd lacks {missing}: use a newer one")]
    Lacks {
        /// What it lacks.
        missing: Features,
    },
    /// It was made, and refused the handshake.
    #[error("the kernel refused the userfaultfd handshake")]
    Handshake(#[source] io::Error),
}

/// A descriptor before its handshake, how it was had, and why it was not had otherwise.
pub(super) struct Fresh {
    pub(super) fd: OwnedFd,
    pub(super) opened: Opened,
    pub(super) device_error: Option<io::Error>,
}

/// Opens one without any handshake. It is non-blocking, or `poll` would answer `POLLERR`.
pub(super) fn fresh() -> Result<Fresh, OpenError> {
    match through_device() {
        Ok(fd) => Ok(Fresh { fd, opened: Opened::Device, device_error: None }),
        Err(device) => match ioctl::userfaultfd() {
            Ok(fd) => Ok(Fresh { fd, opened: Opened::Syscall, device_error: Some(device) }),
            Err(syscall) => Err(OpenError::NotPermitted { device, syscall }),
        },
    }
}

fn through_device() -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
    ioctl::new_from_device(device.as_raw_fd())
}

/// Opens one with exactly `features`.
///
/// # Errors
///
/// [`OpenError`]: no permission, or a kernel that lacks one of them.
pub fn open(features: Features) -> Result<OwnedFd, OpenError> {
    let Fresh { fd, .. } = fresh()?;
    match ioctl::api(fd.as_raw_fd(), features.bits()) {
        Ok(_) => Ok(fd),
        // The handshake names no culprit; a second descriptor, asked for nothing, tells what there is.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let there = ioctl::api(fresh()?.fd.as_raw_fd(), 0).map_err(OpenError::Handshake)?;
            Err(refusal(error, features, Features::from_bits(there)))
        }
        Err(error) => Err(OpenError::Handshake(error)),
    }
}

/// What is missing where a kernel that has `there` refuses `wanted`.
fn refusal(error: io::Error, wanted: Features, there: Features) -> OpenError {
    let missing = wanted.without(there);
    if missing.is_empty() { OpenError::Handshake(error) } else { OpenError::Lacks { missing } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uffd::Feature;

    #[test]
    fn an_old_kernel_is_told_by_what_it_lacks_and_since_when_there_is_it() {
        let there = Features::NONE.with(Feature::EVENT_REMOVE);
        let new = [Feature::WRITE_PROTECT, Feature::MINOR_SHMEM, Feature::POISON, Feature::MOVE];
        let wanted = new.into_iter().fold(there, Features::with);
        let error = refusal(io::ErrorKind::InvalidInput.into(), wanted, there);
        assert_eq!(
            error.to_string(),
            "this kernel's userfaultfd lacks pagefault_flag_wp (Linux 5.7), minor_shmem (Linux 5.14), \
             poison (Linux 6.6), move (Linux 6.8): use a newer one"
        );
        let odd = refusal(io::ErrorKind::InvalidInput.into(), there, there);
        assert!(matches!(odd, OpenError::Handshake(_)), "{odd}");
    }
}
