//! From start to end of the real process: what ends it, how, and that nothing is left.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs;
use std::time::Instant;

use serde_json::json;
use tests::guest::{Entry, bare_metal};
use tests::host::on_kvm_host;
use tests::vmm::{Vmm, WAIT};

/// Where `struct elf64_hdr` has the address of the first instruction.
const ELF_ENTRY: usize = 24;
const SIGNALS: [&str; 3] = ["TERM", "INT", "HUP"];

#[test]
fn signals_end_a_vmm_in_every_state() {
    on_kvm_host(|| {
        for signal in SIGNALS {
            let mut vmm = Vmm::start();
            vmm.signal(signal);
            vmm.ends_cleanly();

            let mut vmm = Vmm::booted("spin");
            vmm.wait_for_line("guest: spinning");
            vmm.signal(signal);
            vmm.ends_cleanly();

            let mut vmm = Vmm::booted("spin");
            vmm.pause();
            vmm.signal(signal);
            vmm.ends_cleanly();
        }
    });
}

#[test]
fn a_signal_during_a_start_ends_it_too() {
    on_kvm_host(|| {
        for _ in 0..5 {
            let mut vmm = Vmm::configured("spin");
            let body = br#"{"action_type": "InstanceStart"}"#;
            let client = vmm.client().clone();
            let starting = std::thread::spawn(move || drop(client.raw("PUT", "/actions", Some(body))));
            vmm.signal("TERM");
            vmm.ends_cleanly();
            starting.join().unwrap();
        }
    });
}

#[test]
fn a_signal_ends_it_cleanly_from_the_moment_its_socket_is_there() {
    on_kvm_host(|| {
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let socket = folder.path().join("api.socket");
            let mut vmm = Vmm::start_command(&["--api-sock", socket.to_str().unwrap()]);
            let deadline = Instant::now() + WAIT;
            while !socket.exists() {
                assert!(Instant::now() < deadline, "no socket: {}", vmm.log());
            }
            vmm.signal("TERM");
            let status = vmm.wait_for_exit();
            assert!(status.success() && !socket.exists(), "{status}, socket left: {}", socket.exists());
        }
    });
}

#[test]
fn a_vm_has_a_thread_for_each_vcpu_its_devices_and_its_output() {
    on_kvm_host(|| {
        let vmm = Vmm::configured("spin");
        vmm.wait_for_threads(&["faultless", "api", "log"]);
        vmm.machine(2, 64);
        vmm.start_instance();
        vmm.wait_for_threads(&["faultless", "api", "log", "devices", "serial-out", "vcpu0", "vcpu1"]);
    });
}

#[test]
fn refused_starts_and_requests_leave_no_threads_and_no_descriptors() {
    on_kvm_host(|| {
        let vmm = Vmm::configured("spin");
        let descriptors = || fs::read_dir(format!("/proc/{}/fd", vmm.id())).unwrap().count();
        vmm.grant("PUT", "/serial", &json!({ "serial_out_path": "/no/such/folder/serial" }));
        let start = json!({ "action_type": "InstanceStart" });
        vmm.refuse("PUT", "/actions", &start);
        let before = descriptors();
        for _ in 0..20 {
            vmm.refuse("PUT", "/actions", &start);
            vmm.refuse("PUT", "/boot-source", &json!({ "kernel_image_path": "/no/such/kernel" }));
        }
        // The last request's connection may still be open for a moment.
        let deadline = Instant::now() + WAIT;
        while descriptors() > before {
            assert!(Instant::now() < deadline, "{} descriptors became {}", before, descriptors());
        }
        vmm.wait_for_threads(&["faultless", "api", "log"]);
    });
}

#[test]
fn nothing_is_left_however_the_guest_ends() {
    on_kvm_host(|| {
        // A triple fault is how Linux reboots with reboot=t, so it is no failure.
        for way in ["exit", "reset", "i8042", "crash"] {
            let mut vmm = Vmm::booted(&format!("hello {way}"));
            vmm.wait_for_line("guest: hello");
            vmm.ends_cleanly();
        }
    });
}

#[test]
fn a_guest_that_cannot_go_on_is_a_failure_and_told() {
    on_kvm_host(|| {
        let mut vmm = Vmm::configured("hello");
        // Entered where there is neither RAM nor a device, which no processor can carry out.
        let mut kernel = fs::read(bare_metal(Entry::Linux64)).unwrap();
        kernel[ELF_ENTRY..ELF_ENTRY + 8].copy_from_slice(&0x2000_0000_u64.to_le_bytes());
        let path = vmm.folder().join("kernel");
        fs::write(&path, kernel).unwrap();
        vmm.boot_source(&path, None, "hello");
        vmm.start_instance();
        assert_eq!(vmm.wait_for_exit().code(), Some(1));
        assert!(vmm.log().contains("the microVM failed") && vmm.log().contains("vCPU 0"), "{}", vmm.log());
        vmm.left_nothing_behind();
    });
}

#[test]
fn all_that_the_guest_said_is_out_when_the_process_ends() {
    on_kvm_host(|| {
        for _ in 0..5 {
            let mut vmm = Vmm::booted(&"hello ".repeat(40));
            (0..40).for_each(|_| drop(vmm.wait_for_line("guest: hello from ring 3")));
            vmm.ends_cleanly();
        }
    });
}

#[test]
fn pausing_and_resuming_twice_is_no_error() {
    on_kvm_host(|| {
        let mut vmm = Vmm::booted("tick");
        vmm.wait_for_line("guest: tick 2");
        for _ in 0..2 {
            vmm.pause();
            assert_eq!(vmm.state(), "Paused");
        }
        for _ in 0..2 {
            vmm.resume();
            assert_eq!(vmm.state(), "Running");
        }
        vmm.wait_for_line("guest: tick");
    });
}

#[test]
fn what_needs_a_running_vm_is_refused_before_it_runs() {
    on_kvm_host(|| {
        let vmm = Vmm::configured("spin");
        for (method, path, body) in [
            ("PATCH", "/vm", json!({ "state": "Paused" })),
            ("PATCH", "/vm", json!({ "state": "Resumed" })),
            ("PUT", "/actions", json!({ "action_type": "SendCtrlAltDel" })),
            ("PUT", "/actions", json!({ "action_type": "FlushMetrics" })),
            ("PATCH", "/drives/data", json!({ "drive_id": "data" })),
        ] {
            let message = vmm.refuse(method, path, &body);
            assert!(message.contains("not supported before starting the microVM"), "{path}: {message}");
        }
    });
}

#[test]
fn what_configures_a_vm_is_refused_once_it_runs() {
    on_kvm_host(|| {
        let vmm = Vmm::booted("spin");
        for (path, body) in [
            ("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 64 })),
            ("/boot-source", json!({ "kernel_image_path": "/kernel" })),
            ("/drives/data", json!({ "drive_id": "data", "path_on_host": "/disk", "is_root_device": false })),
            ("/entropy", json!({})),
            ("/serial", json!({})),
            ("/logger", json!({ "level": "Off" })),
            ("/metrics", json!({ "metrics_path": "/metrics" })),
        ] {
            let message = vmm.refuse("PUT", path, &body);
            assert!(message.contains("not supported after starting the microVM"), "{path}: {message}");
        }
        vmm.refuse("PATCH", "/machine-config", &json!({ "vcpu_count": 2 }));
        assert_eq!(vmm.state(), "Running");
    });
}
