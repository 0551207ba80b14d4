//! The QEMU that is the lab, and its arguments.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::LabError;
use crate::child::dies_with_parent;
use crate::kernel::Arch;

/// Spares the emulated processors what proves nothing here: self-tests, calibrations, mitigations.
const QUICK_BOOT: &str =
    "panic=-1 quiet mitigations=off nokaslr tsc=reliable no_timer_check cryptomgr.notests lsm= audit=0";

/// What to boot, on what.
pub(super) struct Boot<'a> {
    pub(super) arch: Arch,
    pub(super) kernel: &'a Path,
    pub(super) image: &'a Path,
    /// Added to the kernel's command line.
    pub(super) kernel_arguments: &'a str,
    /// Shared with the lab, to be written to; QEMU's and the kernel's messages go there too.
    pub(super) exchange: &'a Path,
    pub(super) memory_mib: u32,
    pub(super) cpus: u32,
}

/// How an architecture's host is emulated.
struct Machine {
    program: &'static str,
    kind: &'static str,
    processor: &'static str,
    console: &'static str,
}

impl Machine {
    fn of(arch: Arch) -> Self {
        match arch {
            Arch::X86_64 => Self {
                program: "qemu-system-x86_64",
                // Without what a KVM host in software has no use for, and the kernel would take its time to find.
                kind: "q35,hpet=off,smbus=off,sata=off,usb=off,vmport=off",
                processor: "EPYC,+svm,+npt",
                console: "ttyS0",
            },
            Arch::Aarch64 => Self {
                program: "qemu-system-aarch64",
                kind: "virt,virtualization=on,gic-version=3",
                processor: "cortex-a72",
                console: "ttyAMA0",
            },
        }
    }
}

/// A running QEMU, which is ended when nobody holds it any more.
pub(super) struct Qemu(Child);

impl Qemu {
    pub(super) fn start(boot: &Boot) -> Result<Self, LabError> {
        let machine = Machine::of(boot.arch);
        let log = boot.exchange.join("qemu.log");
        let log = File::create(&log).map_err(|source| LabError::Missing { path: log, source })?;
        let mut command = Command::new(machine.program);
        command
            .args(["-M", machine.kind, "-cpu", machine.processor, "-accel", "tcg,thread=multi"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-smp", &boot.cpus.to_string(), "-m", &boot.memory_mib.to_string()])
            .arg("-kernel")
            .arg(boot.kernel)
            .arg("-initrd")
            .arg(boot.image)
            .args(["-append", &format!("console={} {QUICK_BOOT} {}", machine.console, boot.kernel_arguments)])
            .args(["-virtfs", &share(Path::new("/"), "hostroot", ",readonly=on")])
            .args(["-virtfs", &share(boot.exchange, "exchange", "")])
            .args(["-serial", &format!("file:{}/console.log", boot.exchange.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        dies_with_parent(&mut command)
            .spawn()
            .map(Self)
            .map_err(|source| LabError::Missing { path: PathBuf::from(machine.program), source })
    }

    pub(super) fn has_ended(&mut self) -> io::Result<bool> {
        self.0.try_wait().map(|status| status.is_some())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn share(folder: &Path, tag: &str, more: &str) -> String {
    let folder = folder.display();
    format!("local,path={folder},mount_tag={tag},security_model=none,multidevs=remap{more}")
}
