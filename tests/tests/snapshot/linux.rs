//! A stock Linux that is saved and restored while it works.

use tests::guest::{LinuxGuest, QUIET_CONSOLE};
use tests::host::on_linux_host;

use super::*;

/// How often it goes from one process to the next. `FAULTLESS_CYCLES` says otherwise.
const CYCLES: usize = 6;

fn cycles() -> usize {
    std::env::var("FAULTLESS_CYCLES").ok().map_or(CYCLES, |text| text.parse().expect("a number of cycles"))
}

#[test]
fn a_working_linux_on_four_vcpus_goes_from_process_to_process() {
    on_linux_host(|| {
        let guest = LinuxGuest::prepare("6.12").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("root.ext4");
        guest.copy_disk(&disk).unwrap();
        let mut vmm = Vmm::start();
        vmm.machine(4, 192);
        let arguments = format!("{QUIET_CONSOLE} guest=hello,nproc,checksum,entropy,poweroff");
        vmm.boot_source(&guest.elf, Some(&guest.initrd), &arguments);
        vmm.drive("rootfs", &disk, true, false);
        vmm.entropy();
        vmm.start_instance();
        vmm.wait_for_line("guest: nproc=4");
        vmm.wait_for_line("guest: checksum");
        for cycle in 0..cycles() {
            let files = SnapshotFiles::new(folder.path(), &(cycle % 2).to_string());
            vmm.pause();
            vmm.save(&files);
            vmm.kill();
            assert!(!vmm.console().contains("FAIL"), "{}", vmm.console());
            let backend = ["Lazy", "File"][cycle % 2];
            vmm = Vmm::restored(&files, backend);
            let line = vmm.wait_for_line("guest: checksum");
            println!("cycle {cycle}, {backend}: {line}");
        }
        vmm.type_text("quit\n");
        vmm.wait_for_line("guest: checksum over");
        vmm.wait_for_line("guest: entropy ok");
        vmm.wait_for_line("guest: poweroff");
        vmm.ends_cleanly();
        assert!(!vmm.console().contains("FAIL"), "{}", vmm.console());
    });
}
