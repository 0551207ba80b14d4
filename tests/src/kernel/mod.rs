//! Stock Debian kernels: fetched by `resources/fetch-kernels`, and the parts of them that a boot needs.

mod modules;
mod payload;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, str};

use thiserror::Error;

use crate::cache::{self, CacheError};
pub(crate) use modules::Module;
pub use payload::PayloadError;

/// Why a kernel is not there to be booted.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The script that fetches kernels failed, and has said why.
    #[error("resources/fetch-kernels {name} failed; its message is above")]
    Fetch {
        /// The kernel asked for.
        name: String,
    },
    /// A file of the kernel, or of the cache, cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A program that unpacks is missing or failed.
    #[error("{program} could not unpack {path}: {reason}; `make setup` installs it")]
    Unpack {
        /// The program.
        program: &'static str,
        /// What it was given.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The image is no bzImage with an ELF inside.
    #[error("{path}: {source}")]
    Payload {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        source: PayloadError,
    },
    /// The kernel has no such module, neither loadable nor built in.
    #[error("kernel {release} has no module {module}")]
    NoModule {
        /// The kernel's release.
        release: String,
        /// The module asked for.
        module: String,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// A processor architecture, as `uname -m` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit Intel and AMD.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Arch {
    /// The architecture this program was compiled for.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// Its name, as `uname -m` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    folder: PathBuf,
    release: String,
    name: String,
    arch: Arch,
}

impl Kernel {
    /// The kernel of a KVM host, of a series such as `6.12`.
    pub fn host(arch: Arch, series: &str) -> Result<Self, KernelError> {
        Self::fetched(arch, format!("host-{series}"))
    }

    /// Debian's "cloud" kernel for guests, of a series such as `6.12`.
    pub fn guest(arch: Arch, series: &str) -> Result<Self, KernelError> {
        Self::fetched(arch, format!("guest-{series}"))
    }

    fn fetched(arch: Arch, name: String) -> Result<Self, KernelError> {
        let folder = cache::folder()?.join("kernels").join(arch.name()).join(&name);
        if !folder.join("release").exists() {
            fetch(arch, &name)?;
        }
        let release = read(&folder.join("release"))?;
        let release = String::from_utf8_lossy(&release).trim().to_owned();
        Ok(Self { folder, release, name, arch })
    }

    /// What `uname -r` says on it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The image as the distribution ships it: a bzImage on x86.
    pub fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The uncompressed ELF from inside the bzImage, unpacked on first use.
    pub fn elf(&self) -> Result<PathBuf, KernelError> {
        let name = format!("kernels/{}/{}/vmlinux-{}", self.arch.name(), self.name, self.release);
        cache::build_once(&name, |path| payload::extract_elf(&self.image(), path))
    }

    /// These modules and those they depend on, in the order to load them; without those that are built in.
    pub(crate) fn modules(&self, wanted: &[&str]) -> Result<Vec<Module>, KernelError> {
        modules::in_load_order(&self.folder.join("modules"), &self.release, wanted)
    }

    /// Names a file made from this kernel, in the cache.
    pub(crate) fn derived(&self, what: &str) -> String {
        format!("images/{}/{}-{what}", self.arch.name(), self.release)
    }
}

fn fetch(arch: Arch, name: &str) -> Result<(), KernelError> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/fetch-kernels");
    let status = Command::new(&script).args(["--arch", arch.name(), name]).stdout(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(KernelError::Fetch { name: name.to_owned() }),
        Err(source) => Err(KernelError::Io { path: script, source }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, KernelError> {
    fs::read(path).map_err(|source| KernelError::Io { path: path.to_owned(), source })
}
