//! Asks the kernel which parts of userfaultfd it has, with a descriptor that is thrown away.
//!
//! A descriptor answers `UFFDIO_API` once, so the one that asks is not the one that serves a guest.

use std::io;
use std::os::fd::AsRawFd;

use super::features::{Feature, Features};
use super::open::{Fresh, OpenError, Opened, fresh};
use super::{ioctl, pagemap};

/// What was found.
#[derive(Debug)]
pub struct Probe {
    /// The way that worked.
    pub opened: Opened,
    /// Why `/dev/userfaultfd` did not, where the system call had to serve.
    pub device_error: Option<io::Error>,
    /// Whether `PAGEMAP_SCAN` is there (Linux 6.7).
    pub pagemap_scan: bool,
    /// What the kernel has.
    pub features: Features,
}

impl Probe {
    /// Whether the kernel has `feature`.
    #[must_use]
    pub const fn has(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }
}

/// Asks the kernel.
///
/// # Errors
///
/// [`OpenError`] where no userfaultfd can be had, with the kernel's answer to each way of asking.
pub fn probe() -> Result<Probe, OpenError> {
    let Fresh { fd, opened, device_error } = fresh()?;
    let features = ioctl::api(fd.as_raw_fd(), 0).map_err(OpenError::Handshake)?;
    let features = Features::from_bits(features);
    Ok(Probe { opened, device_error, pagemap_scan: pagemap::is_supported(), features })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_answers_as_its_version_promises() {
        let probe = match probe() {
            Ok(probe) => probe,
            Err(OpenError::NotPermitted { device, syscall }) => {
                // A test run without permission still checks that both refusals are told.
                assert!(device.raw_os_error().is_some() && syscall.raw_os_error().is_some());
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let version = |text: &str| {
            let mut parts = text.split(['.', '-', '\n']).map(|part| part.parse::<u32>().unwrap_or(0));
            (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
        };
        for feature in Feature::ALL.into_iter().filter(|feature| version(feature.since) > version(&release)) {
            assert!(!probe.has(feature), "{} on {release}", feature.name);
        }
        // Not a matter of configuration on x86_64, so it must be there.
        assert!(probe.has(Feature::EVENT_REMOVE));
        assert_eq!(probe.pagemap_scan, version(&release) >= (6, 7));
    }
}
