//! The VMM with stock Debian kernels, from boot to power-off.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tests::guest::{LinuxGuest, QUIET_CONSOLE};
use tests::host::on_linux_host;
use tests::vmm::Vmm;

/// Which of a kernel's two forms is booted.
#[derive(Clone, Copy)]
enum Form {
    /// As the distribution ships it.
    BzImage,
    /// The ELF inside.
    Elf,
}

fn kernel(guest: &LinuxGuest, form: Form) -> &Path {
    match form {
        Form::BzImage => &guest.image,
        Form::Elf => &guest.elf,
    }
}

/// A guest on its root disk that does `checks`, with so many vCPUs.
fn booted(guest: &LinuxGuest, form: Form, cpus: u32, checks: &str) -> (Vmm, PathBuf) {
    let vmm = Vmm::start();
    let disk = vmm.folder().join("root.ext4");
    guest.copy_disk(&disk).unwrap();
    vmm.machine(cpus, 256);
    vmm.boot_source(kernel(guest, form), Some(&guest.initrd), &format!("{QUIET_CONSOLE} guest={checks}"));
    vmm.drive("rootfs", &disk, true, false);
    vmm.entropy();
    vmm.start_instance();
    (vmm, disk)
}

fn boots_and_uses_its_devices(series: &str, form: Form, cpus: u32) {
    let guest = LinuxGuest::prepare(series).unwrap();
    let (mut vmm, _) = booted(&guest, form, cpus, "hello,nproc,disk,entropy,poweroff");
    let hello = vmm.wait_for_line("guest: hello");
    assert_eq!(hello, format!("guest: hello from Linux {}, root on ext4", guest.release));
    assert_eq!(vmm.wait_for_line("guest: nproc"), format!("guest: nproc={cpus}"));
    vmm.wait_for_line("guest: disk ok");
    vmm.wait_for_line("guest: entropy ok from virtio_rng");
    vmm.wait_for_line("guest: poweroff");
    vmm.ends_cleanly();
    assert!(!vmm.console().contains("guest: FAIL"), "{}", vmm.console());
}

#[test]
fn debian_6_1_boots_as_shipped_on_one_vcpu() {
    on_linux_host(|| boots_and_uses_its_devices("6.1", Form::BzImage, 1));
}

#[test]
fn debian_6_1_boots_as_elf_on_four_vcpus() {
    on_linux_host(|| boots_and_uses_its_devices("6.1", Form::Elf, 4));
}

#[test]
fn debian_6_12_boots_as_shipped_on_four_vcpus() {
    on_linux_host(|| boots_and_uses_its_devices("6.12", Form::BzImage, 4));
}

#[test]
fn debian_6_12_boots_as_elf_on_one_vcpu() {
    on_linux_host(|| boots_and_uses_its_devices("6.12", Form::Elf, 1));
}

#[test]
fn a_reboot_ends_the_process_as_a_power_off_does() {
    on_linux_host(|| {
        let guest = LinuxGuest::prepare("6.12").unwrap();
        let (mut vmm, _) = booted(&guest, Form::Elf, 1, "hello,reboot");
        vmm.wait_for_line("guest: reboot");
        vmm.ends_cleanly();
    });
}

#[test]
fn a_read_only_root_is_not_written_to() {
    on_linux_host(|| {
        let guest = LinuxGuest::prepare("6.12").unwrap();
        let vmm = Vmm::start();
        let disk = vmm.folder().join("root.ext4");
        guest.copy_disk(&disk).unwrap();
        let before = std::fs::read(&disk).unwrap();
        vmm.machine(1, 256);
        vmm.boot_source(
            &guest.elf,
            Some(&guest.initrd),
            &format!("{QUIET_CONSOLE} guest=hello,disk-ro,poweroff"),
        );
        vmm.drive("rootfs", &disk, true, true);
        let mut vmm = vmm;
        vmm.start_instance();
        vmm.wait_for_line("guest: disk-ro ok");
        vmm.ends_cleanly();
        assert!(std::fs::read(&disk).unwrap() == before, "the disk's file changed");
    });
}

#[test]
fn what_is_typed_reaches_a_shell() {
    on_linux_host(|| {
        let guest = LinuxGuest::prepare("6.12").unwrap();
        let (mut vmm, _) = booted(&guest, Form::Elf, 1, "echo,poweroff");
        vmm.wait_for_line("guest: echo");
        vmm.type_text("typed\n");
        vmm.wait_for_line("guest: echo typed");
        vmm.type_text("quit\n");
        vmm.ends_cleanly();
    });
}

/// One boot for what only a stock driver does: flushes, interrupts that it waits for, and Ctrl+Alt+Del.
#[test]
fn asynchronous_writeback_survives_pauses_and_ctrl_alt_del_reboots() {
    on_linux_host(|| {
        let guest = LinuxGuest::prepare("6.12").unwrap();
        let mut vmm = Vmm::start();
        let disk = vmm.folder().join("root.ext4");
        guest.copy_disk(&disk).unwrap();
        vmm.machine(2, 256);
        let arguments = format!("{QUIET_CONSOLE} guest=hello,disk,echo,disk,idle");
        vmm.boot_source(&guest.elf, Some(&guest.initrd), &arguments);
        let drive = json!({
            "drive_id": "rootfs", "path_on_host": disk, "is_root_device": true,
            "cache_type": "Writeback", "io_engine": "Async",
        });
        vmm.grant("PUT", "/drives/rootfs", &drive);
        vmm.start_instance();
        vmm.wait_for_line("guest: hello");
        for _ in 0..5 {
            vmm.pause();
            vmm.resume();
        }
        vmm.wait_for_line("guest: disk ok");
        assert!(vmm.counter("faultless_block_flush_total{drive=\"rootfs\"}") > 0, "nothing was flushed");
        vmm.wait_for_line("guest: echo");
        // The same file under another name: what was asked for before must be finished on it.
        let renamed = vmm.folder().join("renamed.ext4");
        std::fs::rename(&disk, &renamed).unwrap();
        vmm.grant("PATCH", "/drives/rootfs", &json!({ "drive_id": "rootfs", "path_on_host": renamed }));
        vmm.type_text("quit\n");
        vmm.wait_for_line("guest: disk ok");
        vmm.wait_for_line("guest: idle");
        assert_eq!(vmm.counter("faultless_block_device_errors_total{drive=\"rootfs\"}"), 0);
        vmm.grant("PUT", "/actions", &json!({ "action_type": "SendCtrlAltDel" }));
        vmm.ends_cleanly();
        assert!(!vmm.console().contains("guest: FAIL"), "{}", vmm.console());
    });
}

/// Two seconds without its watchdog are a lock-up for this guest. It is kept busy, since the watchdog overlooks an idle
/// processor, and paused twice, since on a host in software the guest's clock may hide a pause from it.
#[test]
fn a_guest_does_not_take_a_pause_for_a_lock_up() {
    on_linux_host(|| {
        let guest = LinuxGuest::prepare("6.12").unwrap();
        let mut vmm = Vmm::start();
        vmm.machine(1, 256);
        let arguments = format!("{QUIET_CONSOLE} watchdog_thresh=1 guest=shell");
        vmm.boot_source(&guest.elf, Some(&guest.initrd), &arguments);
        vmm.start_instance();
        vmm.wait_for_line("built-in shell");
        vmm.type_text("while n=$((n+1)); do case $n in *00) echo is busy $n; esac; done\n");
        vmm.wait_for_line("is busy 500");
        let complaints = |vmm: &Vmm| vmm.console().matches("soft lockup").count();
        let before = complaints(&vmm);
        for _ in 0..2 {
            vmm.pause();
            std::thread::sleep(Duration::from_secs(4));
            vmm.resume();
            (0..20).for_each(|_| drop(vmm.wait_for_line("is busy")));
        }
        assert_eq!(complaints(&vmm), before, "{}", vmm.console());
    });
}

/// As many processors as there can be: Linux starts each by its entry in the MADT, and says how many it has. That is
/// where this ends, since an emulated host takes minutes from there to userspace.
#[test]
fn debian_6_12_brings_up_thirty_two_vcpus() {
    on_linux_host(|| {
        let guest = LinuxGuest::prepare("6.12").unwrap();
        let mut vmm = Vmm::start();
        vmm.machine(32, 256);
        vmm.boot_source(&guest.elf, Some(&guest.initrd), "console=ttyS0 panic=-1 reboot=t");
        vmm.start_instance();
        vmm.wait_for_line("smp: Bringing up secondary CPUs");
        vmm.wait_for_line("smp: Brought up 1 node, 32 CPUs");
        vmm.pause();
        assert_eq!(vmm.state(), "Paused");
        vmm.signal("TERM");
        vmm.ends_cleanly();
    });
}
