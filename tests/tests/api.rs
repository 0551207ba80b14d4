//! The API of the real process: what it refuses, in which words, and that nothing is lost by it.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tests::guest::{Entry, bare_metal};
use tests::host::on_kvm_host;
use tests::vmm::{Vmm, binary};

const AFTER_START: &str = "The requested operation is not supported after starting the microVM.";

fn start() -> Value {
    json!({ "action_type": "InstanceStart" })
}

/// A running VM that does nothing.
fn running() -> Vmm {
    let mut vmm = Vmm::start();
    vmm.boot_source(bare_metal(Entry::Linux64), None, "spin");
    vmm.start_instance();
    vmm.wait_for_line("guest: spinning");
    vmm
}

/// That the VMM, after a refusal, still boots when it is told right.
fn still_boots(mut vmm: Vmm) {
    vmm.machine(1, 64);
    vmm.boot_source(bare_metal(Entry::Linux64), None, "hello exit");
    vmm.start_instance();
    vmm.wait_for_line("guest: hello");
    vmm.ends_cleanly();
}

#[test]
fn a_second_start_is_refused_and_the_first_goes_on() {
    on_kvm_host(|| {
        let vmm = running();
        assert!(vmm.refuse("PUT", "/actions", &start()).contains(AFTER_START));
        let boot = json!({ "kernel_image_path": bare_metal(Entry::Linux64) });
        assert!(vmm.refuse("PUT", "/boot-source", &boot).contains(AFTER_START));
        let info: Value = vmm.grant("GET", "/", &Value::Null).json().unwrap();
        assert_eq!(info["state"], "Running");
    });
}

#[test]
fn without_a_kernel_there_is_no_start() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        vmm.refuse("PUT", "/actions", &start());
        still_boots(vmm);
    });
}

#[test]
fn a_missing_kernel_is_refused_by_name() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let message = vmm.refuse("PUT", "/boot-source", &json!({ "kernel_image_path": "/no/such/kernel" }));
        assert!(message.contains("No such file"), "{message}");
        still_boots(vmm);
    });
}

/// Configures `kernel`, which may be refused at once or at the start, and returns the refusal.
fn refused_kernel(vmm: &Vmm, kernel: &Path) -> String {
    let boot = vmm.request("PUT", "/boot-source", &json!({ "kernel_image_path": kernel }));
    if boot.is_success() { vmm.refuse("PUT", "/actions", &start()) } else { boot.fault_message() }
}

#[test]
fn what_is_no_whole_kernel_is_refused() {
    on_kvm_host(|| {
        let whole = fs::read(bare_metal(Entry::Linux64)).unwrap();
        let contents: [(&str, &[u8]); 4] = [
            ("empty", b""),
            ("text", b"#!/bin/sh\necho this is no kernel, however long it may be\n"),
            ("header only", &whole[..64]),
            ("truncated", &whole[..whole.len() / 4]),
        ];
        for (name, content) in contents {
            let vmm = Vmm::start();
            let path = vmm.folder().join("kernel");
            fs::write(&path, content).unwrap();
            let message = refused_kernel(&vmm, &path);
            assert!(!message.is_empty(), "{name}");
        }
    });
}

#[test]
fn an_initrd_that_does_not_fit_is_refused() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let initrd = vmm.folder().join("initrd");
        fs::File::create(&initrd).unwrap().set_len(100 << 20).unwrap();
        vmm.machine(1, 64);
        let boot = json!({ "kernel_image_path": bare_metal(Entry::Linux64), "initrd_path": initrd });
        let answer = vmm.request("PUT", "/boot-source", &boot);
        let refusal = if answer.is_success() {
            vmm.refuse("PUT", "/actions", &start())
        } else {
            answer.fault_message()
        };
        assert!(refusal.to_lowercase().contains("initrd"), "{refusal}");
    });
}

#[test]
fn impossible_machines_are_refused() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        for (cpus, memory_mib) in [(0, 128), (33, 128), (1, 0)] {
            vmm.refuse("PUT", "/machine-config", &json!({ "vcpu_count": cpus, "mem_size_mib": memory_mib }));
        }
        still_boots(vmm);
    });
}

#[test]
fn impossible_drives_are_refused() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let drive = |id: &str, path: &Path, root: bool| json!({ "drive_id": id, "path_on_host": path, "is_root_device": root });
        vmm.refuse("PUT", "/drives/a", &drive("a", Path::new("/no/such/disk"), false));
        vmm.refuse("PUT", "/drives/a", &drive("a", Path::new("/"), false));
        let disk = vmm.folder().join("disk");
        fs::write(&disk, [0; 4096]).unwrap();
        vmm.refuse("PUT", "/drives/a", &drive("b", &disk, false));
        vmm.grant("PUT", "/drives/a", &drive("a", &disk, true));
        vmm.refuse("PUT", "/drives/b", &drive("b", &disk, true));
    });
}

#[test]
fn malformed_bodies_are_refused() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        vmm.refuse(
            "PUT",
            "/machine-config",
            &json!({ "vcpu_count": 1, "mem_size_mib": 64, "speed": "high" }),
        );
        vmm.refuse("PUT", "/machine-config", &json!({ "vcpu_count": "one", "mem_size_mib": 64 }));
        let half = vmm.client().raw("PUT", "/machine-config", Some(b"{\"vcpu_count\": 1,")).unwrap();
        assert_eq!(half.status, 400);
        assert!(
            vmm.refuse("GET", "/no/such/path", &Value::Null).contains("Invalid request method and/or path")
        );
        still_boots(vmm);
    });
}

#[test]
fn a_socket_of_the_living_is_respected_and_one_of_the_dead_replaced() {
    on_kvm_host(|| {
        let mut vmm = Vmm::start();
        let socket = vmm.client().path().to_owned();
        let second = Command::new(binary()).arg("--api-sock").arg(&socket).output().unwrap();
        assert!(!second.status.success());
        let said = String::from_utf8_lossy(&second.stderr);
        assert!(said.contains(&*socket.to_string_lossy()), "{said}");
        vmm.grant("GET", "/", &Value::Null);

        vmm.kill();
        assert!(socket.exists(), "a killed process cannot take its socket away");
        Vmm::start_on(&socket).grant("GET", "/", &Value::Null);
    });
}

#[test]
fn a_terminated_vmm_leaves_nothing_behind() {
    on_kvm_host(|| {
        let mut vmm = running();
        let kill = Command::new("kill").args(["-TERM", &vmm.id().to_string()]).status().unwrap();
        assert!(kill.success());
        vmm.wait_for_exit();
        assert!(!vmm.client().path().exists(), "it left its socket behind");
    });
}
