//! What is admitted when, and what clients match on.

use serde_json::{Value, json};
use tests::guest::{Entry, bare_metal};
use tests::vmm::Launch;
use tests::vmm::snapshot::with;

use super::*;

const AFTER_START: &str = "The requested operation is not supported after starting the microVM.";
const BEFORE_START: &str = "The requested operation is not supported before starting the microVM.";
const CONFIGURED: &str = "Loading a microVM snapshot not allowed after configuring boot-specific resources.";

#[test]
fn only_what_stands_still_is_saved() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let mut vmm = Vmm::configured("shell exit");
        assert_eq!(vmm.refuse("PUT", "/snapshot/create", &files.creation()), BEFORE_START);
        vmm.start_instance();
        vmm.wait_for_line("guest: shell");
        let refusal = vmm.refuse("PUT", "/snapshot/create", &files.creation());
        assert!(refusal.contains("save/restore unavailable while running"), "{refusal}");
        assert_eq!(names_in(folder.path()), [""; 0]);
        vmm.pause();
        vmm.save(&files);
        assert_eq!(vmm.state(), "Paused");
        assert_eq!(names_in(folder.path()), ["saved.memory", "saved.state"]);
        vmm.resume();
        quits(&mut vmm);
    });
}

#[test]
fn a_machine_that_is_configured_or_runs_is_not_loaded_over() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        for (path, body) in [
            ("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 64 })),
            ("/boot-source", json!({ "kernel_image_path": bare_metal(Entry::Linux64) })),
            ("/entropy", json!({})),
            (
                "/drives/data",
                json!({ "drive_id": "data", "path_on_host": files.memory, "is_root_device": false }),
            ),
        ] {
            let mut vmm = Vmm::start();
            vmm.grant("PUT", path, &body);
            assert_eq!(vmm.refuse("PUT", "/snapshot/load", &files.load("File")), CONFIGURED, "{path}");
            assert_eq!(vmm.state(), "Not started");
            assert!(vmm.ended().is_none(), "nothing of it is spent");
        }
        let mut vmm = Vmm::restored(&files, "File");
        assert_eq!(vmm.refuse("PUT", "/snapshot/load", &files.load("File")), AFTER_START);
        vmm.pause();
        assert_eq!(vmm.refuse("PUT", "/snapshot/load", &files.load("Lazy")), AFTER_START);
        assert_eq!(vmm.refuse("PUT", "/actions", &json!({ "action_type": "InstanceStart" })), AFTER_START);
        vmm.resume();
        is_alive(&mut vmm);
        quits(&mut vmm);
    });
}

#[test]
fn what_a_snapshot_does_not_bring_is_set_before() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        let (log, metrics) = (folder.path().join("log"), folder.path().join("metrics"));
        let serial = folder.path().join("serial");
        let mut vmm = Vmm::start();
        vmm.grant("PUT", "/logger", &json!({ "log_path": log, "level": "Debug" }));
        vmm.grant("PUT", "/metrics", &json!({ "metrics_path": metrics }));
        vmm.grant("PUT", "/serial", &json!({ "serial_out_path": serial }));
        vmm.grant("PUT", "/snapshot/load", &files.load("Lazy"));
        vmm.grant("PUT", "/actions", &json!({ "action_type": "FlushMetrics" }));
        let written = std::fs::read_to_string(&metrics).unwrap();
        let written: Value = serde_json::from_str(written.lines().last().unwrap()).unwrap();
        assert!(written["vcpu"].is_object() && written["memory"].is_object(), "{written}");
        let config = vmm.get("/vm/config");
        assert_eq!(config["logger"]["log_path"], json!(log), "{config}");
        assert_eq!(config["metrics"]["metrics_path"], json!(metrics), "{config}");
        assert_eq!(config["serial"]["serial_out_path"], json!(serial), "{config}");
        vmm.type_text("hello\nquit\n");
        vmm.ends_cleanly();
        let said = std::fs::read_to_string(&serial).unwrap();
        assert!(said.contains("guest: hello"), "{said}");
    });
}

#[test]
fn memory_is_named_once_and_by_its_new_name() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        let old = json!({ "snapshot_path": files.state, "mem_file_path": files.memory, "resume_vm": true });
        let vmm = Vmm::start();
        for (wrong, text) in [
            (with(files.load("File"), &old), "too many fields: either `mem_backend` or `mem_file_path`"),
            (
                json!({ "snapshot_path": files.state }),
                "missing field: either `mem_backend` or `mem_file_path`",
            ),
        ] {
            let refusal = vmm.refuse("PUT", "/snapshot/load", &wrong);
            assert!(refusal.contains(text), "{refusal}");
        }
        let stray = with(files.load("File"), &json!({ "shallow": true }));
        assert!(vmm.refuse("PUT", "/snapshot/load", &stray).contains("shallow"));
        assert_eq!(vmm.state(), "Not started", "a request that makes no sense spends nothing");
        for (load, deprecated) in [
            (files.load("File"), false),
            (with(files.load("File"), &json!({ "track_dirty_pages": true })), false),
            (old, true),
            (with(files.load("Lazy"), &json!({ "enable_diff_snapshots": true })), true),
        ] {
            let mut vmm = Vmm::start();
            assert_eq!(vmm.grant("PUT", "/snapshot/load", &load).deprecated, deprecated, "{load}");
            is_alive(&mut vmm);
        }
    });
}

#[test]
fn what_is_loaded_tells_of_itself_as_before() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let disk = folder.path().join("disk");
        std::fs::write(&disk, vec![0x5a; 1 << 20]).unwrap();
        let vmm = with_devices(&disk);
        vmm.pause();
        let before = (config_of(&vmm), vmm.get("/machine-config"));
        vmm.save(&files);
        drop(vmm);
        for backend in ["File", "Lazy"] {
            let mut vmm = Vmm::loaded(&with(files.load(backend), &json!({ "resume_vm": false })));
            assert_eq!((vmm.state().as_str(), vmm.get("/")["failure"].clone()), ("Paused", Value::Null));
            assert_eq!((config_of(&vmm), vmm.get("/machine-config")), before);
            assert_eq!(vmm.counter("faultless_memory_failures_total"), 0);
            vmm.resume();
            assert_eq!(vmm.state(), "Running");
            is_alive(&mut vmm);
            patches_its_drive(&mut vmm);
            quits(&mut vmm);
        }
    });
}

#[test]
fn memory_is_backed_as_the_load_says() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        let backed = |backend, pages| with(files.load(backend), &json!({ "huge_pages": pages }));
        for (backend, pages) in [("File", "None"), ("Lazy", "None"), ("Lazy", "Transparent")] {
            is_whole(&mut Vmm::loaded(&backed(backend, pages)));
        }
        let refusal = Vmm::refused_load(&backed("File", "2M"));
        assert!(refusal.contains("Cannot restore hugetlbfs backed snapshot by mapping"), "{refusal}");
        let lazy = with(files.load("File"), &json!({ "lazy": {} }));
        assert!(Vmm::start().refuse("PUT", "/snapshot/load", &lazy).contains("mem_backend of the type Lazy"));
    });
}

/// What a snapshot brings with it of `GET /vm/config`: the log is the process's own.
fn config_of(vmm: &Vmm) -> Value {
    with(vmm.get("/vm/config"), &json!({ "logger": null }))
}

/// Gives the guest another disk, and has it look.
fn patches_its_drive(vmm: &mut Vmm) {
    let other = vmm.folder().join("other");
    std::fs::write(&other, vec![0xc3; 1 << 20]).unwrap();
    vmm.grant("PATCH", "/drives/data", &json!({ "drive_id": "data", "path_on_host": other }));
    assert_eq!(vmm.get("/vm/config")["drives"][0]["path_on_host"], json!(other));
    // Where a guest's read leaves what it has read.
    vmm.type_text(&format!("disk-read {} 1 128 1 peek {:#x}\n", tests::guest::mmio(0), 2 << 20));
    vmm.wait_for_line("guest: disk-read 1 MiB, 0 failed requests");
    let line = vmm.wait_for_line("guest: peek");
    assert!(line.ends_with("0xc3c3c3c3"), "{line}");
    vmm.wait_for_line("guest: done");
}

#[test]
fn a_process_whose_load_failed_ends_and_leaves_nothing() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "none");
        let mut vmm = Vmm::serve(Launch::new(&[]).with_api());
        let refusal = vmm.refuse("PUT", "/snapshot/load", &files.load("Lazy"));
        assert!(refusal.starts_with("Load snapshot error: "), "{refusal}");
        assert!(!vmm.wait_for_exit().success());
        assert!(vmm.log().contains("the microVM failed"), "{}", vmm.log());
        vmm.left_nothing_behind();
    });
}
