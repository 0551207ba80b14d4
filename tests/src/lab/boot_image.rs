//! The lab's initramfs: busybox, init, and the modules that KVM and the shares need. Built once per kernel.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use crate::cache;
use crate::initramfs::Archive;
use crate::kernel::{Arch, Kernel, KernelError, Module};

const INIT: &str = include_str!("init");
const SHARES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
/// Something to swap to.
const SWAP: [&str; 1] = ["zram"];
const KVM_X86: [&str; 4] = ["irqbypass", "ccp", "kvm", "kvm-amd"];

pub(super) fn build(kernel: &Kernel, arch: Arch) -> Result<PathBuf, KernelError> {
    let mut wanted = [&SHARES[..], &SWAP].concat();
    if arch == Arch::X86_64 {
        wanted.extend(KVM_X86); // Debian's arm64 kernel has KVM built in.
    }
    // The name changes with what goes in, so an image made by an older version of this is not taken.
    let mut contents = DefaultHasher::new();
    (INIT, &wanted).hash(&mut contents);
    let name = kernel.derived(&format!("lab-{:016x}.cpio", contents.finish()));
    cache::build_once(&name, |path| {
        let modules = kernel.modules(&wanted)?;
        write(path, &modules).map_err(|source| KernelError::Io { path: path.to_owned(), source })
    })
}

fn write(path: &Path, modules: &[Module]) -> io::Result<()> {
    let mut archive = Archive::new(BufWriter::new(File::create(path)?));
    ["bin", "dev", "modules"].iter().try_for_each(|folder| archive.folder(folder))?;
    archive.character_device("dev/console", 5, 1)?;
    archive.file("bin/busybox", 0o755, &fs::read(crate::guest::BUSYBOX)?)?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    for module in modules {
        archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.object)?;
    }
    let order: String = modules.iter().map(|module| module.name.clone() + "\n").collect();
    archive.file("modules/order", 0o644, order.as_bytes())?;
    archive.finish()
}
