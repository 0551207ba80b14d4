//! Machines that cannot be: each is refused in words that say what to do, and nothing is lost by it.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::guest::{Entry, bare_metal, mmio};
use tests::host::on_kvm_host;
use tests::vmm::Vmm;

const MIB: u64 = 1 << 20;

fn start() -> Value {
    json!({ "action_type": "InstanceStart" })
}

/// That the VMM, after a refused start, boots when it is told right.
fn can_be_mended(mut vmm: Vmm) {
    assert_eq!(vmm.state(), "Not started");
    vmm.machine(1, 64);
    vmm.boot_source(bare_metal(Entry::Linux64), None, "hello exit");
    vmm.start_instance();
    vmm.wait_for_line("guest: hello");
    vmm.ends_cleanly();
}

/// A number out of a file of the kernel's, such as /proc/meminfo.
fn host_number(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn more_memory_than_the_host_has_is_refused() {
    on_kvm_host(|| {
        let vmm = Vmm::configured("hello exit");
        let host_mib = host_number("/proc/meminfo", "MemTotal:") / 1024;
        // The last two are 64 MiB and nothing when they are counted in bytes, in 64 bits.
        for mib in [host_mib + 1024, (1 << 44) + 64, 1 << 44, u64::MAX] {
            vmm.grant("PUT", "/machine-config", &json!({ "vcpu_count": 1, "mem_size_mib": mib }));
            let message = vmm.refuse("PUT", "/actions", &start());
            assert!(message.contains("this host has: ask for less"), "{mib} MiB: {message}");
        }
        can_be_mended(vmm);
    });
}

#[test]
fn huge_pages_come_in_pairs_of_mib() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let odd = json!({ "vcpu_count": 1, "mem_size_mib": 65, "huge_pages": "2M" });
        assert!(vmm.refuse("PUT", "/machine-config", &odd).contains("not a multiple"));
        vmm.grant(
            "PUT",
            "/machine-config",
            &json!({ "vcpu_count": 1, "mem_size_mib": 64, "huge_pages": "2M" }),
        );
        assert!(
            vmm.refuse("PATCH", "/machine-config", &json!({ "mem_size_mib": 65 })).contains("not a multiple")
        );
        assert_eq!(vmm.get("/machine-config")["mem_size_mib"], 64, "a refused change changed something");
    });
}

#[test]
fn huge_pages_without_a_pool_are_refused_with_what_reserves_them() {
    on_kvm_host(|| {
        let vmm = Vmm::configured("hello exit");
        let pool = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB");
        let number =
            |name| fs::read_to_string(pool.join(name)).unwrap_or_default().trim().parse().unwrap_or(0);
        let available: u64 = number("free_hugepages") + number("nr_overcommit_hugepages");
        let machine = json!({ "vcpu_count": 1, "mem_size_mib": 2 * available + 64, "huge_pages": "2M" });
        vmm.grant("PUT", "/machine-config", &machine);
        let message = vmm.refuse("PUT", "/actions", &start());
        assert!(message.contains("sysctl vm.nr_hugepages="), "{message}");
        can_be_mended(vmm);
    });
}

#[test]
fn transparent_huge_pages_need_no_pool() {
    on_kvm_host(|| {
        let mut vmm = Vmm::configured("fill 32 3 walk 32 3 exit");
        vmm.grant("PATCH", "/machine-config", &json!({ "huge_pages": "Transparent" }));
        vmm.start_instance();
        assert!(vmm.wait_for_line("guest: walk").contains(" 0 wrong pages"));
        vmm.ends_cleanly();
    });
}

#[test]
fn a_cpu_template_is_refused_and_marked_as_deprecated() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let machine = json!({ "vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "T2" });
        let answer = vmm.request("PUT", "/machine-config", &machine);
        assert_eq!((answer.status, answer.deprecated), (400, true));
        assert!(answer.fault_message().contains("leave `cpu_template` out"), "{}", answer.fault_message());
        vmm.refuse("PATCH", "/machine-config", &json!({ "cpu_template": "T2" }));
        vmm.grant("PATCH", "/machine-config", &json!({ "cpu_template": "None" }));
    });
}

#[test]
fn a_kernel_larger_than_ram_is_refused() {
    on_kvm_host(|| {
        for entry in [Entry::Linux64, Entry::Pvh] {
            let vmm = Vmm::start();
            vmm.machine(1, 1);
            vmm.boot_source(bare_metal(entry), None, "hello exit");
            let message = vmm.refuse("PUT", "/actions", &start());
            assert!(message.contains("the guest has 1 MiB: give it more"), "{message}");
            can_be_mended(vmm);
        }
    });
}

/// Whether the guest, with 8 MiB, boots beside an initrd of so many bytes.
fn boots_beside_initrd(bytes: u64) -> bool {
    let mut vmm = Vmm::start();
    let initrd = vmm.folder().join("initrd");
    File::create(&initrd).unwrap().set_len(bytes).unwrap();
    vmm.machine(1, 8);
    vmm.boot_source(bare_metal(Entry::Linux64), Some(&initrd), "hello exit");
    let answer = vmm.request("PUT", "/actions", &start());
    if answer.is_success() {
        vmm.wait_for_line("guest: hello");
        vmm.ends_cleanly();
    } else {
        assert!(
            answer.fault_message().contains("does not fit above the kernel"),
            "{}",
            answer.fault_message()
        );
    }
    answer.is_success()
}

#[test]
fn an_initrd_may_fill_ram_up_to_the_last_page() {
    on_kvm_host(|| {
        let (mut fits, mut too_large) = (MIB / 4096, 8 * MIB / 4096);
        assert!(boots_beside_initrd(fits * 4096) && !boots_beside_initrd(too_large * 4096));
        while too_large - fits > 1 {
            let middle = fits.midpoint(too_large);
            *(if boots_beside_initrd(middle * 4096) { &mut fits } else { &mut too_large }) = middle;
        }
        // The guest's image ends below 2 MiB, and whatever fits by the page fits by the byte.
        assert!(fits * 4096 >= 6 * MIB, "{fits} pages of initrd fit, and no more");
        assert!(!boots_beside_initrd(fits * 4096 + 1));
        assert!(boots_beside_initrd(fits * 4096 - 1));
    });
}

#[test]
fn an_empty_initrd_is_refused() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let initrd = vmm.folder().join("initrd");
        File::create(&initrd).unwrap();
        vmm.machine(1, 64);
        let boot = json!({ "kernel_image_path": bare_metal(Entry::Linux64), "initrd_path": initrd });
        let answer = vmm.request("PUT", "/boot-source", &boot);
        let message = if answer.is_success() {
            vmm.refuse("PUT", "/actions", &start())
        } else {
            answer.fault_message()
        };
        assert!(message.contains("initrd is an empty file"), "{message}");
        can_be_mended(vmm);
    });
}

fn disk(folder: &Path) -> PathBuf {
    let path = folder.join("disk");
    fs::write(&path, vec![0x5a; 1 << 20]).unwrap();
    path
}

#[test]
fn a_disk_is_written_by_one_vmm_or_read_by_several() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(folder.path());
        let body = |read_only: bool| json!({ "drive_id": "data", "path_on_host": disk, "is_root_device": false, "is_read_only": read_only });
        let mut writer = Vmm::start();
        writer.grant("PUT", "/drives/data", &body(false));
        let readers = [(); 2].map(|()| Vmm::configured(&format!("disk-read {} 1 exit", mmio(0))));
        for read_only in [false, true] {
            let message = readers[0].refuse("PUT", "/drives/data", &body(read_only));
            assert!(message.contains("in use") && message.contains(disk.to_str().unwrap()), "{message}");
        }
        writer.kill();
        readers.iter().for_each(|vmm| drop(vmm.grant("PUT", "/drives/data", &body(true))));
        assert!(Vmm::start().refuse("PUT", "/drives/data", &body(false)).contains("in use"));
        for mut vmm in readers {
            vmm.start_instance();
            assert!(vmm.wait_for_line("guest: disk-read").contains(" 0 failed requests"));
            vmm.ends_cleanly();
        }
    });
}

#[test]
fn a_drive_that_is_replaced_gives_its_file_back() {
    on_kvm_host(|| {
        let (one, other) = (Vmm::start(), Vmm::start());
        let (disk, second) = (disk(one.folder()), disk(other.folder()));
        one.drive("data", &disk, false, false);
        one.drive("data", &disk, false, false);
        one.drive("data", &second, false, false);
        other.drive("data", &disk, false, false);
        assert_eq!(one.get("/vm/config")["drives"].as_array().unwrap().len(), 1);
    });
}

#[test]
fn a_start_that_failed_late_can_be_tried_again_with_the_same_drive() {
    on_kvm_host(|| {
        let mut vmm = Vmm::configured(&format!("disk-read {} 1 hello exit", mmio(0)));
        let disk = disk(vmm.folder());
        vmm.drive("data", &disk, false, false);
        vmm.grant("PUT", "/serial", &json!({ "serial_out_path": "/no/such/folder/serial" }));
        for _ in 0..3 {
            let message = vmm.refuse("PUT", "/actions", &start());
            assert!(message.contains("/no/such/folder/serial"), "{message}");
            vmm.wait_for_threads(&["faultless", "api", "log"]);
        }
        vmm.grant("PUT", "/serial", &json!({}));
        vmm.start_instance();
        assert!(vmm.wait_for_line("guest: disk-read").contains(" 0 failed requests"));
        vmm.wait_for_line("guest: hello");
        vmm.ends_cleanly();
    });
}

/// What a kernel takes for a command line, without its end.
const COMMAND_LINE_BYTES_MAX: usize = 2047;

#[test]
fn a_command_line_may_be_as_long_as_a_kernel_takes() {
    on_kvm_host(|| {
        let words = "hello exit";
        let padded = |bytes: usize| format!("{:x<1$} {words}", "", bytes - words.len() - 1);
        let boot = |line: &str| json!({ "kernel_image_path": bare_metal(Entry::Linux64), "boot_args": line });
        let mut vmm = Vmm::start();
        vmm.machine(1, 64);
        let longest = padded(COMMAND_LINE_BYTES_MAX);
        vmm.grant("PUT", "/boot-source", &boot(&longest));
        let message = vmm.refuse("PUT", "/boot-source", &boot(&padded(COMMAND_LINE_BYTES_MAX + 1)));
        assert_eq!(
            message,
            "Boot source error: The kernel command line is invalid: it is longer than the 2047 bytes a kernel takes"
        );
        assert_eq!(vmm.get("/vm/config")["boot-source"]["boot_args"], json!(longest), "a refusal changed it");
        // The words stand at its very end, so the guest has got all of it.
        vmm.start_instance();
        vmm.wait_for_line("guest: hello");
        vmm.ends_cleanly();
    });
}

#[test]
fn a_root_that_does_not_fit_on_the_command_line_is_refused() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let disk = disk(vmm.folder());
        vmm.drive("root", &disk, true, false);
        let added = " root=/dev/vda rw".len();
        for (bytes, fits) in
            [(COMMAND_LINE_BYTES_MAX - added + 1, false), (COMMAND_LINE_BYTES_MAX - added, true)]
        {
            let line = format!("hello exit {:x<1$}", "", bytes - "hello exit ".len());
            vmm.boot_source(bare_metal(Entry::Linux64), None, &line);
            let answer = vmm.request("PUT", "/actions", &start());
            assert_eq!(answer.is_success(), fits, "{bytes}: {}", answer.fault_message());
            let text = "it is longer than the 2047 bytes a kernel takes";
            assert!(fits || answer.fault_message().ends_with(text), "{}", answer.fault_message());
        }
    });
}

#[test]
fn refusals_name_the_resource_first() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let disk = disk(vmm.folder());
        let drive =
            |id: &str, path: &Path| json!({ "drive_id": id, "path_on_host": path, "is_root_device": true });
        vmm.grant("PUT", "/drives/root", &drive("root", &disk));
        let machine = |cpus: u32| json!({ "vcpu_count": cpus, "mem_size_mib": 64 });
        for (path, body, text) in [
            ("/machine-config", machine(0), "Machine config error: "),
            ("/machine-config", machine(33), "Machine config error: "),
            ("/drives/a", drive("a", Path::new("/no/such/disk")), "Drive config error: "),
            ("/drives/a", drive("a", &disk), "Drive config error: A root block device already exists!"),
            ("/boot-source", json!({ "kernel_image_path": "/no/such/kernel" }), "Boot source error: "),
            ("/boot-source", json!({ "kernel_image_path": "" }), "Boot source error: "),
            ("/logger", json!({ "log_path": "/no/such/folder/log" }), "Logger error: "),
            ("/metrics", json!({ "metrics_path": "/no/such/folder/metrics" }), "Metrics error: "),
            ("/actions", start(), "Start microvm error: "),
        ] {
            let message = vmm.refuse("PUT", path, &body);
            assert!(message.starts_with(text), "{path} {body}: {message}");
        }
        let message = vmm.refuse("PATCH", "/machine-config", &json!({ "vcpu_count": 33 }));
        assert!(message.starts_with("Machine config error: "), "{message}");
    });
}
