//! Asks the kernel which parts of userfaultfd it has, with a descriptor that is thrown away.
//!
//! A descriptor answers `UFFDIO_API` once, so the one that asks is not the one that serves a guest. Sources:
//! `include/uapi/linux/userfaultfd.h` of Linux 6.18 for the numbers, and `ioctl_userfaultfd(2)`.
//!
//! `unsafe` is here for three ioctls on descriptors that this file opens; the `userfaultfd` crate knows neither
//! `/dev/userfaultfd` refusals one by one nor the feature bits after Linux 5.13.
#![expect(unsafe_code, reason = "the feature handshake is an ioctl that no crate wraps in full")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `UFFD_API`, the only version there is.
const UFFD_API: u64 = 0xaa;
/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IO(0xaa, 0x00)`, on `/dev/userfaultfd`.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
/// `_IOWR('f', 16, struct pm_scan_arg)`, on `/proc/self/pagemap`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// One thing that userfaultfd can do on some kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// The kernel's name without its prefix, in lower case.
    pub name: &'static str,
    /// The first Linux that has it on x86_64.
    pub since: &'static str,
    /// What a user goes without where it is missing.
    pub lost_without: &'static str,
    bit: u64,
}

impl Feature {
    const fn new(bit: u32, name: &'static str, since: &'static str, lost_without: &'static str) -> Self {
        Self { name, since, lost_without, bit: 1 << bit }
    }

    /// Every feature this program has a use for.
    pub const ALL: [Self; 12] = [
        Self::new(
            0,
            "pagefault_flag_wp",
            "5.7",
            "live snapshots: the guest is paused while its memory is written",
        ),
        Self::new(3, "event_remove", "4.11", "ballooning while memory is restored lazily"),
        Self::new(4, "missing_hugetlbfs", "4.11", "lazy restore onto hugetlb pages"),
        Self::new(5, "missing_shmem", "4.11", "lazy restore into shared memory"),
        Self::new(8, "thread_id", "4.14", "telling which vCPU waits for a page"),
        Self::new(9, "minor_hugetlbfs", "5.13", "clones that share hugetlb pages"),
        Self::new(10, "minor_shmem", "5.14", "clones that share the pages none of them wrote"),
        Self::new(12, "wp_hugetlbfs_shmem", "5.19", "live snapshots of shared or hugetlb memory"),
        Self::new(
            13,
            "wp_unpopulated",
            "6.4",
            "write-protecting memory that was never touched without filling it",
        ),
        Self::new(14, "poison", "6.6", "a memory error for a lost page: the VM is stopped instead"),
        Self::new(15, "wp_async", "6.7", "cheap dirty tracking: diff snapshots use KVM's dirty log"),
        Self::new(16, "move", "6.8", "placing restored memory as huge pages without copying"),
    ];
}

/// How a userfaultfd was had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// Through `/dev/userfaultfd`, whose file mode decides who may (Linux 6.1).
    Device,
    /// Through the system call, which wants `CAP_SYS_PTRACE` or `vm.unprivileged_userfaultfd=1`.
    Syscall,
}

/// What was found.
#[derive(Debug)]
pub struct Probe {
    /// The way that worked.
    pub opened: Opened,
    /// Why `/dev/userfaultfd` did not, where the system call had to serve.
    pub device_error: Option<io::Error>,
    /// Whether `PAGEMAP_SCAN` is there (Linux 6.7).
    pub pagemap_scan: bool,
    features: u64,
}

impl Probe {
    /// Whether the kernel has `feature`.
    #[must_use]
    pub const fn has(&self, feature: Feature) -> bool {
        self.features & feature.bit != 0
    }
}

/// Why there is no userfaultfd that could take the kernel's own faults, which is where KVM's come from.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Neither way gives one.
    #[error("cannot open /dev/userfaultfd ({device}), nor use the system call ({syscall})")]
    NotPermitted {
        /// The answer to opening or using the device.
        device: io::Error,
        /// The answer to the system call.
        syscall: io::Error,
    },
    /// It was made, and refused the handshake.
    #[error("the kernel refused the userfaultfd handshake")]
    Handshake(#[source] io::Error),
}

/// Asks the kernel.
///
/// # Errors
///
/// [`ProbeError`] where no userfaultfd can be had, with the kernel's answer to each way of asking.
pub fn probe() -> Result<Probe, ProbeError> {
    let (uffd, opened, device_error) = match open_device() {
        Ok(uffd) => (uffd, Opened::Device, None),
        Err(device) => match open_syscall() {
            Ok(uffd) => (uffd, Opened::Syscall, Some(device)),
            Err(syscall) => return Err(ProbeError::NotPermitted { device, syscall }),
        },
    };
    let features = handshake(&uffd).map_err(ProbeError::Handshake)?;
    Ok(Probe { opened, device_error, pagemap_scan: has_pagemap_scan(), features })
}

fn open_device() -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
    // SAFETY: the ioctl takes its flags by value and returns a descriptor or -1.
    let fd =
        unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    owned(fd.into())
}

fn open_syscall() -> io::Result<OwnedFd> {
    // SAFETY: the call takes its flags by value and returns a descriptor or -1. `UFFD_USER_MODE_ONLY` is left out:
    // KVM's faults come from kernel mode.
    owned(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) })
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(fd) {
        // SAFETY: the kernel just returned this descriptor, and nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks for no feature, and is told of all.
fn handshake(uffd: &OwnedFd) -> io::Result<u64> {
    #[repr(C)]
    struct UffdioApi {
        api: u64,
        features: u64,
        ioctls: u64,
    }
    let mut api = UffdioApi { api: UFFD_API, features: 0, ioctls: 0 };
    // SAFETY: the kernel reads and writes one `struct uffdio_api`, which `api` is.
    let result = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &raw mut api) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(api.features) }
}

/// Whether the kernel knows the request: one that does not answers `ENOTTY`, one that does scans an empty range.
fn has_pagemap_scan() -> bool {
    let Ok(pagemap) = File::open("/proc/self/pagemap") else {
        return false;
    };
    /// `struct pm_scan_arg` of `include/uapi/linux/fs.h`: twelve 64-bit words, the first its own size.
    const WORDS: usize = 12;
    let mut arg = [0_u64; WORDS];
    arg[0] = size_of_val(&arg) as u64;
    // SAFETY: the kernel reads and writes one `struct pm_scan_arg`; its ranges are empty, so it follows no pointer.
    let result = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, arg.as_mut_ptr()) };
    result >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOTTY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_answers_as_its_version_promises() {
        let probe = match probe() {
            Ok(probe) => probe,
            Err(ProbeError::NotPermitted { device, syscall }) => {
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
        let remove = Feature::ALL.into_iter().find(|feature| feature.name == "event_remove").unwrap();
        assert!(probe.has(remove));
        assert_eq!(probe.pagemap_scan, version(&release) >= (6, 7));
    }
}
