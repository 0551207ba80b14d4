//! The start of the process: signals while it lasts, hosts that give too little, and what a configuration file must be.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::guest::{Entry, bare_metal};
use tests::host::on_kvm_host;
use tests::vmm::{Launch, Vmm, WAIT};

/// Exit codes that orchestrators know.
const GENERIC_FAILURE: i32 = 1;
const BAD_CONFIGURATION: i32 = 152;

/// A configuration file for the bare-metal guest, with `more` in it.
fn config(folder: &Path, mut boot: Value, more: &Value) -> PathBuf {
    let path = folder.join("config");
    boot["kernel_image_path"] = json!(bare_metal(Entry::Linux64));
    let mut config = json!({ "boot-source": boot });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    fs::write(&path, config.to_string()).unwrap();
    path
}

fn start_with(config: &Path) -> Vmm {
    Launch::new(&["--config-file", config.to_str().unwrap()]).with_api().with_log().start()
}

#[test]
fn a_signal_while_a_guest_is_loaded_ends_the_process_in_order() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        // Long to load, and nothing on the disk.
        let initrd = folder.path().join("initrd");
        File::create(&initrd).unwrap().set_len(256 << 20).unwrap();
        let machine = json!({ "machine-config": { "vcpu_count": 1, "mem_size_mib": 512 } });
        let config = config(folder.path(), json!({ "initrd_path": initrd, "boot_args": "spin" }), &machine);
        let mut were_loading = 0;
        // At several moments of a start, whichever they are on this host.
        for (signal, delay_ms) in ["TERM", "INT", "HUP"].into_iter().cycle().zip([0, 5, 20, 60]) {
            let mut vmm = start_with(&config);
            let deadline = Instant::now() + WAIT;
            while !vmm.client().path().exists() {
                assert!(Instant::now() < deadline, "no socket: {}", vmm.log());
            }
            std::thread::sleep(Duration::from_millis(delay_ms));
            were_loading += u32::from(!vmm.log().contains("the microVM runs"));
            vmm.signal(signal);
            vmm.ends_cleanly();
        }
        assert!(were_loading > 0, "no signal came before the guest ran, so nothing was tested");
    });
}

/// Starts with a configuration file that is none, in an address space that an endless one would fill, and returns what
/// is said of it.
fn refused(config: &Path) -> String {
    let launch = Launch::new(&["--config-file", config.to_str().unwrap()]).with_api();
    let mut vmm = launch.by(&["prlimit", "--as=2000000000"]).start();
    assert_eq!(vmm.wait_for_exit().code(), Some(BAD_CONFIGURATION), "{}: {}", config.display(), vmm.log());
    vmm.left_nothing_behind();
    vmm.log()
}

#[test]
fn a_configuration_file_is_a_file_and_has_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let (pipe, endless) = (folder.path().join("pipe"), folder.path().join("endless"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    File::create(&endless).unwrap().set_len(1 << 40).unwrap();
    for path in [&pipe, Path::new("/dev/zero"), folder.path()] {
        assert!(refused(path).contains("not a regular file"), "{}", path.display());
    }
    assert!(refused(&endless).contains("longer than 1048576 bytes"));
}

#[test]
fn exit_codes_tell_mistakes_from_hosts_that_cannot() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let machine = |mib: u64| json!({ "vcpu_count": 1, "mem_size_mib": mib });
        let drive = json!({ "drive_id": "a", "path_on_host": "/no/such/disk", "is_root_device": false });
        for (more, code, text) in [
            (json!({ "machine-config": machine(0) }), BAD_CONFIGURATION, "The memory size (MiB) is either 0"),
            (json!({ "drives": [drive] }), BAD_CONFIGURATION, "Drive config error: "),
            (json!({ "machine-config": machine(1 << 40) }), GENERIC_FAILURE, "this host has: ask for less"),
        ] {
            let mut vmm = start_with(&config(folder.path(), json!({}), &more));
            assert_eq!(vmm.wait_for_exit().code(), Some(code), "{more}: {}", vmm.log());
            assert!(vmm.log().contains(text), "{more}: {}", vmm.log());
            vmm.left_nothing_behind();
        }
    });
}

/// Waits until the API answers, or the process says why it does not.
fn has_api(vmm: &mut Vmm) -> bool {
    let deadline = Instant::now() + WAIT;
    while !vmm.has_api() {
        if let Some(status) = vmm.ended() {
            assert!(!status.success(), "{}", vmm.log());
            assert!(vmm.log().contains("Too many open files"), "{status}: {}", vmm.log());
            return false;
        }
        // It is ready for the moment when there is one more.
        if vmm.log().contains("cannot accept a connection; trying again error=Too many open files") {
            return false;
        }
        assert!(Instant::now() < deadline, "neither an API nor a reason: {}", vmm.log());
    }
    true
}

#[test]
fn too_few_descriptors_are_told_whatever_they_are_too_few_for() {
    on_kvm_host(|| {
        let (mut without_api, mut without_start) = (0, 0);
        for limit in 4..64 {
            let launch = Launch::new(&[]).with_api().with_log();
            let mut vmm = launch.by(&["prlimit", &format!("--nofile={limit}")]).start();
            if !has_api(&mut vmm) {
                without_api += 1;
                continue;
            }
            vmm.machine(1, 64);
            let boot = json!({ "kernel_image_path": bare_metal(Entry::Linux64), "boot_args": "spin" });
            let mut answer = vmm.request("PUT", "/boot-source", &boot);
            if answer.is_success() {
                answer = vmm.request("PUT", "/actions", &json!({ "action_type": "InstanceStart" }));
            }
            if answer.is_success() {
                assert!(without_api > 0 && without_start > 0, "{without_api} {without_start}");
                return;
            }
            without_start += 1;
            assert!(
                answer.fault_message().contains("Too many open files"),
                "{limit}: {}",
                answer.fault_message()
            );
            assert_eq!(vmm.state(), "Not started");
        }
        panic!("no start with 64 descriptors");
    });
}
