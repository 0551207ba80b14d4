//! What tests boot: the bare-metal guest, and stock Debian kernels with a root of busybox.
//!
//! ```text
//!   kernel (bzImage, or the ELF inside) ─▶ initramfs: modules, resources/guest-init ─▶ ext4 on /dev/vda: the same init
//! ```
//!
//! What a guest does is told on its command line: the words of the bare-metal guest (`tests/guest/main.rs`), or
//! `guest=word,word` for Linux (`resources/guest-init`).

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufWriter};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache;
use crate::initramfs::Archive;
use crate::kernel::{Arch, Kernel, KernelError};

/// Debian's statically linked busybox (package `busybox-static`).
pub(crate) const BUSYBOX: &str = "/bin/busybox";
const INIT: &str = include_str!("../../resources/guest-init");
const MODULES: [&str; 4] = ["virtio_mmio", "virtio_blk", "virtio_rng", "ext4"];
/// The series of guest kernels that tests boot.
pub const SERIES: [&str; 2] = ["6.1", "6.12"];
/// The size of the root disk.
pub const DISK_BYTES: u64 = 16 << 20;
/// A page of the bare-metal guest.
pub const PAGE_BYTES: u64 = 4096;
/// A command line for [`LinuxGuest`]: the console on the serial port, no waiting, and nothing in between.
pub const QUIET_CONSOLE: &str = "console=ttyS0 panic=-1 reboot=t quiet";

/// Where the bare-metal guest finds virtio-mmio device `index`; drives come first, in their order, then entropy.
pub const fn mmio(index: u64) -> u64 {
    0xd000_0000 + index * 0x1000
}

/// The page that the bare-metal guest's `fill` writes at a guest address, as it is in memory.
pub fn fill_pattern(address: u64, seed: u64) -> Vec<u8> {
    let mut page = vec![0; usize::try_from(PAGE_BYTES).expect("a page fits")];
    fill_page(address, seed, &mut page);
    page
}

/// The same, into `page`.
pub fn fill_page(address: u64, seed: u64, page: &mut [u8]) {
    let mut word = ((address / PAGE_BYTES) ^ seed.rotate_left(32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^= word >> 31;
    for place in page.chunks_exact_mut(8) {
        place.copy_from_slice(&word.to_le_bytes());
        word = word.wrapping_add(0x2545_f491_4f6c_dd1d);
    }
}

/// How the bare-metal guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// In long mode, with `struct boot_params`: its image has no PVH note.
    Linux64,
    /// In 32 bits, with `struct hvm_start_info`: its image has a PVH note.
    Pvh,
}

/// The bare-metal guest's image, which `build.rs` made.
pub fn bare_metal(entry: Entry) -> &'static Path {
    Path::new(match entry {
        Entry::Linux64 => env!("FAULTLESS_GUEST_LINUX64"),
        Entry::Pvh => env!("FAULTLESS_GUEST_PVH"),
    })
}

/// A stock Debian kernel with what it takes to boot it to userspace.
#[derive(Clone, Debug)]
pub struct LinuxGuest {
    /// What `uname -r` says in it.
    pub release: String,
    /// The image as Debian ships it: a bzImage on x86.
    pub image: PathBuf,
    /// The ELF from inside the image.
    pub elf: PathBuf,
    /// An initramfs with the kernel's virtio modules and `resources/guest-init`.
    pub initrd: PathBuf,
    disk: PathBuf,
}

impl LinuxGuest {
    /// The guest with a kernel of this series (one of [`SERIES`]), from the cache or else made now.
    pub fn prepare(series: &str) -> Result<Self, KernelError> {
        let kernel = Kernel::guest(Arch::HOST, series)?;
        Ok(Self {
            release: kernel.release().to_owned(),
            image: kernel.image(),
            elf: kernel.elf()?,
            initrd: initrd(&kernel)?,
            disk: disk()?,
        })
    }

    /// A fresh root disk at `path`, to be written to.
    pub fn copy_disk(&self, path: &Path) -> Result<(), KernelError> {
        fs::copy(&self.disk, path)
            .map(drop)
            .map_err(|source| KernelError::Io { path: path.to_owned(), source })
    }
}

/// Names a file by what goes into it, so that one made by an older version of this is not taken.
fn fingerprint(content: impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn initrd(kernel: &Kernel) -> Result<PathBuf, KernelError> {
    let name = kernel.derived(&format!("guest-{}.cpio", fingerprint((INIT, MODULES))));
    cache::build_once(&name, |path| {
        let failed = |source| KernelError::Io { path: path.to_owned(), source };
        let mut archive = Archive::new(BufWriter::new(File::create(path).map_err(failed)?));
        let modules = kernel.modules(&MODULES)?;
        let mut write = || {
            ["bin", "dev", "modules"].iter().try_for_each(|folder| archive.folder(folder))?;
            archive.character_device("dev/console", 5, 1)?;
            archive.file("bin/busybox", 0o755, &fs::read(BUSYBOX)?)?;
            for applet in applets()? {
                archive.symlink(&format!("bin/{applet}"), "busybox")?;
            }
            archive.file("init", 0o755, INIT.as_bytes())?;
            for module in &modules {
                archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.object)?;
            }
            let order: String = modules.iter().map(|module| module.name.clone() + "\n").collect();
            archive.file("modules/order", 0o644, order.as_bytes())
        };
        write().and_then(|()| archive.finish()).map_err(failed)
    })
}

/// An ext4 file system with busybox and the same init. `mke2fs -d` fills it without root and without a mount.
fn disk() -> Result<PathBuf, KernelError> {
    let name = format!("images/root-{}.ext4", fingerprint((INIT, DISK_BYTES)));
    cache::build_once(&name, |path| {
        let failed = |source| KernelError::Io { path: path.to_owned(), source };
        let root = tempfile::tempdir().map_err(failed)?;
        fill_root(root.path()).map_err(failed)?;
        let mke2fs = |reason| KernelError::Unpack { program: "mke2fs", path: path.to_owned(), reason };
        let output = Command::new("/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0", "-d"])
            .args([root.path(), path])
            .arg(format!("{}k", DISK_BYTES >> 10))
            .output()
            .map_err(|error| mke2fs(error.to_string()))?;
        if output.status.success() {
            Ok(())
        } else {
            Err(mke2fs(String::from_utf8_lossy(&output.stderr).into_owned()))
        }
    })
}

fn fill_root(root: &Path) -> io::Result<()> {
    for folder in ["bin", "sbin", "proc", "sys", "dev", "root", "ram", "tmp"] {
        fs::create_dir(root.join(folder))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox"))?;
    for applet in applets()? {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    let init = root.join("sbin/init");
    fs::write(&init, INIT)?;
    fs::set_permissions(init, fs::Permissions::from_mode(0o755))
}

/// The commands that this machine's busybox has, but for itself.
fn applets() -> io::Result<Vec<String>> {
    let output = Command::new(BUSYBOX).arg("--list").output()?;
    let names = String::from_utf8_lossy(&output.stdout);
    Ok(names.lines().filter(|name| *name != "busybox").map(str::to_owned).collect())
}
