//! The host's KVM: opening it, and saying what is wrong where it cannot be.

use std::io;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

/// Where KVM is.
pub const DEVICE: &str = "/dev/kvm";
/// The only version of KVM's interface that was ever stable.
const API_VERSION: i32 = 12;
/// What this program cannot do without, and what each is for.
const REQUIRED: [(Cap, &str); 5] = [
    (Cap::UserMemory, "guest memory"),
    (Cap::ImmediateExit, "stopping a vCPU"),
    (Cap::Irqchip, "interrupt controllers in the kernel"),
    (Cap::Irqfd, "interrupts from devices"),
    (Cap::Ioeventfd, "notifications to devices"),
];

/// Why there is no KVM to use.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no such device.
    #[error(
        "there is no {DEVICE}: switch virtualization on in the firmware and load the module \
         (`modprobe kvm_intel` or `modprobe kvm_amd`)"
    )]
    Missing,
    /// There is one, for others.
    #[error("no permission to use {DEVICE}: join its group (`usermod -aG kvm $USER`, then log in again)")]
    Permission,
    /// Opening it failed otherwise.
    #[error("cannot open {DEVICE}: {0}")]
    Open(io::Error),
    /// It is of another kind.
    #[error("{DEVICE} speaks version {0} of its interface, not {API_VERSION}: use another kernel")]
    Version(i32),
    /// It lacks something.
    #[error("this host's KVM lacks {0:?}, needed for {1}: use a newer kernel")]
    Lacks(Cap, &'static str),
}

/// Opens the host's KVM and checks that it has all that a VM needs.
///
/// # Errors
///
/// [`KvmError`], with what to do about it.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Permission,
        errno => KvmError::Open(io::Error::from_raw_os_error(errno)),
    })?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::Version(version));
    }
    match REQUIRED.into_iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        Some((capability, purpose)) => Err(KvmError::Lacks(capability, purpose)),
        None => Ok(kvm),
    }
}

/// What is behind this host's KVM, as far as its loaded module tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavor {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
    /// A pagetable virtual machine: KVM without hardware support, inside another VM. User code of a guest runs
    /// natively; its kernel code is emulated in part.
    Pvm,
    /// Built in, or something else.
    Unknown,
}

impl Flavor {
    /// Looks at the modules that are loaded.
    #[must_use]
    pub fn of_host() -> Self {
        let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
        if loaded("kvm_pvm") {
            Self::Pvm
        } else if loaded("kvm_intel") {
            Self::Vmx
        } else if loaded("kvm_amd") {
            Self::Svm
        } else {
            Self::Unknown
        }
    }

    /// Its name for people and programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vmx => "vmx",
            Self::Svm => "svm",
            Self::Pvm => "pvm",
            Self::Unknown => "unknown",
        }
    }
}
