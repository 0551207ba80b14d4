//! The VMM with the bare-metal guest, on any KVM: no Linux is needed for these.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use tests::guest::{Entry, bare_metal, mmio};
use tests::host::on_kvm_host;
use tests::vmm::Vmm;

/// What `virtio-abuse` can make wrong (`tests/guest/abuse.rs`).
const ABUSES: [&str; 13] = [
    "loop",
    "self",
    "endless",
    "past-ram",
    "length",
    "wrap",
    "indirect-past",
    "indirect-nested",
    "head",
    "avail-jump",
    "rings-past",
    "size",
    "not-ready",
];

/// A VMM that is about to boot the guest with these commands, on 1 vCPU and 64 MiB.
fn configured(entry: Entry, commands: &str) -> Vmm {
    let vmm = Vmm::start();
    vmm.machine(1, 64);
    vmm.boot_source(bare_metal(entry), None, commands);
    vmm
}

#[test]
fn both_entries_reach_ring_3_with_all_ram() {
    on_kvm_host(|| {
        for (entry, name) in [(Entry::Linux64, "linux64"), (Entry::Pvh, "pvh")] {
            let mut vmm = configured(entry, "hello exit");
            vmm.start_instance();
            let line = vmm.wait_for_line("guest: hello");
            assert!(line.contains(&format!("from ring 3, entered by {name}")), "{line}");
            let kib: u64 = line.split_whitespace().rev().nth(3).unwrap().parse().unwrap();
            assert!((65_000..=65_536).contains(&kib), "{line}");
            vmm.ends_cleanly();
        }
    });
}

#[test]
fn ram_holds_what_is_written() {
    on_kvm_host(|| {
        let mut vmm = Vmm::booted("fill 32 7 walk 32 7 walk 32 8 exit");
        vmm.wait_for_line("guest: fill 32 MiB");
        assert!(vmm.wait_for_line("guest: walk 32 MiB").contains(" 0 wrong pages"));
        assert!(vmm.wait_for_line("guest: walk 32 MiB").contains(" 8192 wrong pages"));
        vmm.ends_cleanly();
    });
}

#[test]
fn ram_goes_on_above_the_mmio_gap() {
    on_kvm_host(|| {
        let mut vmm = Vmm::start();
        vmm.machine(1, 3200);
        // 3 GiB are below the gap, and 128 MiB above 4 GiB: every other MiB of them gets a page.
        vmm.boot_source(bare_metal(Entry::Linux64), None, "sample 1600 exit");
        vmm.start_instance();
        let line = vmm.wait_for_line("guest: sample");
        assert!(line.contains(" up to 0x107") && line.ends_with(" 0 wrong pages"), "{line}");
        vmm.ends_cleanly();
    });
}

#[test]
fn every_way_out_ends_the_process_with_success() {
    on_kvm_host(|| {
        for way in ["exit", "reset", "i8042"] {
            let mut vmm = Vmm::booted(&format!("hello {way}"));
            vmm.wait_for_line("guest: hello");
            vmm.ends_cleanly();
        }
    });
}

#[test]
fn a_triple_fault_ends_the_process() {
    on_kvm_host(|| {
        let mut vmm = Vmm::booted("hello crash");
        vmm.wait_for_line("guest: hello");
        vmm.wait_for_exit();
    });
}

#[test]
fn the_console_goes_both_ways() {
    on_kvm_host(|| {
        let mut vmm = Vmm::booted("echo exit");
        vmm.wait_for_line("guest: echo");
        for word in ["one", "another, longer than the sixteen bytes of the receiver's queue"] {
            vmm.type_text(&format!("{word}\n"));
            assert!(vmm.wait_for_line("guest: echo").ends_with(word));
        }
        vmm.type_text("quit\n");
        vmm.ends_cleanly();
    });
}

#[test]
fn a_guest_that_never_exits_can_be_paused() {
    on_kvm_host(|| {
        let mut vmm = Vmm::booted("spin");
        vmm.wait_for_line("guest: spinning");
        for _ in 0..10 {
            vmm.pause();
            assert_eq!(vmm.state(), "Paused");
            vmm.resume();
            assert_eq!(vmm.state(), "Running");
        }
    });
}

#[test]
fn a_paused_guest_stands_still_and_goes_on_where_it_stood() {
    on_kvm_host(|| {
        let tick = |line: String| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
        let mut vmm = Vmm::booted("tick");
        vmm.wait_for_line("guest: tick 3");
        vmm.pause();
        let printed = vmm.console();
        std::thread::sleep(std::time::Duration::from_millis(300));
        let later = vmm.console();
        assert!(later.len() - printed.len() < 64, "only what was on its way may still arrive:\n{later}");
        vmm.resume();
        let mut last = tick(vmm.wait_for_line("guest: tick"));
        for _ in 0..20 {
            let next = tick(vmm.wait_for_line("guest: tick"));
            assert_eq!(next, last + 1);
            last = next;
        }
    });
}

/// A guest with an entropy device and a disk behind it, whose commands get their addresses by `{entropy}` and `{disk}`.
fn booted_with_devices(commands: &str) -> Vmm {
    let commands =
        commands.replace("{disk}", &mmio(0).to_string()).replace("{entropy}", &mmio(1).to_string());
    let vmm = Vmm::configured(&commands);
    let disk = vmm.folder().join("disk");
    std::fs::write(&disk, vec![0x5a; 8 << 20]).unwrap();
    vmm.drive("data", &disk, false, false);
    vmm.entropy();
    vmm.start_instance();
    vmm
}

#[test]
fn disk_and_entropy_work_without_linux() {
    on_kvm_host(|| {
        let mut vmm =
            booted_with_devices("fill 16 disk-write {disk} 4 disk-read {disk} 8 rng {entropy} exit");
        assert!(vmm.wait_for_line("guest: disk-write").contains(" 0 failed requests"));
        assert!(vmm.wait_for_line("guest: disk-read").contains(" 0 failed requests"));
        let line = vmm.wait_for_line("guest: rng");
        let nonzero: u32 = line.split(' ').nth(2).unwrap().parse().unwrap();
        assert!(nonzero > 50, "{line}");
        vmm.wait_for_exit();
        let disk = std::fs::read(vmm.folder().join("disk")).unwrap();
        assert!(disk[..4096].iter().any(|byte| *byte != 0x5a), "the start of the disk was written");
        assert!(
            disk[4 << 20..].iter().all(|byte| *byte == 0x5a),
            "and nothing behind what was to be written"
        );
    });
}

#[test]
fn nonsense_in_mmio_does_no_harm() {
    on_kvm_host(|| {
        let mut vmm = booted_with_devices(
            "mmio-junk {disk} 3000 mmio-junk {entropy} 3000 mmio-junk 0xd00f0000 500 mmio-junk 0xfec00000 500 hello exit",
        );
        vmm.wait_for_line("guest: hello");
        vmm.ends_cleanly();
    });
}

fn malformed_queues_stop(device: &str) {
    for abuse in ABUSES {
        let mut vmm = booted_with_devices(&format!("virtio-abuse {device} {abuse} hello spin"));
        let line = vmm.wait_for_line(&format!("guest: virtio-abuse {abuse}"));
        assert!(line.ends_with("status 0x4f, 0 used"), "DEVICE_NEEDS_RESET, and nothing done: {line}");
        vmm.wait_for_line("guest: hello");
        assert_eq!(vmm.state(), "Running", "{device} {abuse}");
    }
}

#[test]
fn malformed_queues_stop_the_disk_and_nothing_else() {
    on_kvm_host(|| malformed_queues_stop("{disk}"));
}

#[test]
fn malformed_queues_stop_the_entropy_device_and_nothing_else() {
    on_kvm_host(|| malformed_queues_stop("{entropy}"));
}
