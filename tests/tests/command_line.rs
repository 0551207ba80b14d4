//! The binary from a shell: flags and exit codes, configuration files, `doctor` and `ctl`.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tests::guest::{Entry, bare_metal, mmio};
use tests::host::on_kvm_host;
use tests::vmm::{Vmm, binary};

/// Exit codes that orchestrators know.
const BAD_CONFIGURATION: i32 = 152;
const BAD_ARGUMENTS: i32 = 153;

fn faultless(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn wrong_arguments_end_with_a_code_and_the_reason() {
    for (arguments, reason) in [
        (&["--no-such-flag"][..], "--no-such-flag"),
        (&["--id", "not/an/id"], "--id"),
        (&["--level", "Loud"], "--level"),
        (&["--no-api"], "--config-file"),
        (&["--enable-pci"], "--enable-pci"),
        (&["run"], "--kernel"),
        (&["run", "--kernel", "k", "--cpus", "33"], "--cpus"),
        (&["run", "--kernel", "k", "--memory", "much"], "--memory"),
        (&["ctl"], "Usage"),
        (&["ctl", "dance"], "dance"),
    ] {
        let output = faultless(arguments);
        assert_eq!(output.status.code(), Some(BAD_ARGUMENTS), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(reason), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn versions_are_told_under_both_names() {
    let own = faultless(&["--version"]);
    assert_eq!((own.status.code(), stdout(&own).split(' ').next()), (Some(0), Some("faultless")));
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("firecracker");
    symlink(binary(), &name).unwrap();
    let output = Command::new(&name).arg("--version").output().unwrap();
    // Clients take what follows "Firecracker v" up to the line's end for the version.
    let text = stdout(&output);
    let version = text.lines().next().unwrap().strip_prefix("Firecracker v").unwrap();
    assert!(
        output.status.success() && version.split('.').all(|part| part.parse::<u32>().is_ok()),
        "{version}"
    );
}

#[test]
fn the_version_of_state_files_is_told_as_firecracker_does() {
    let own = faultless(&["--snapshot-version"]);
    assert_eq!((own.status.code(), stdout(&own)), (Some(0), "v1.0.0\n".to_owned()));
    let none = faultless(&["--describe-snapshot", "/no/such/state"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(stderr(&none).contains("/no/such/state"), "{}", stderr(&none));
}

#[test]
fn help_names_what_there_is() {
    let help = faultless(&["--help"]);
    assert!(help.status.success());
    for word in ["run", "ctl", "doctor", "--api-sock", "--config-file"] {
        assert!(stdout(&help).contains(word), "{word}");
    }
}

#[test]
fn a_socket_that_cannot_be_made_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    for (path, reason) in [
        (folder.path().join("s".repeat(120)), "another path with --api-sock"),
        (folder.path().join("missing/api.socket"), "create it"),
        (file.clone(), "is not a socket"),
    ] {
        let output = faultless(&["--api-sock", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains(reason), "{}", stderr(&output));
    }
    assert_eq!(fs::read_to_string(file).unwrap(), "precious");
}

#[test]
fn a_configuration_that_cannot_be_used_has_its_own_code() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, path) = (folder.path().join("api.socket"), folder.path().join("config"));
    let boot = json!({ "kernel_image_path": bare_metal(Entry::Linux64) });
    for (config, reason) in [
        ("{".to_owned(), "correct it"),
        (json!({ "boot-source": boot, "colour": {} }).to_string(), "colour"),
        (json!({ "boot-source": boot, "vsock": { "guest_cid": 3 } }).to_string(), "vsock"),
        (json!({ "boot-source": { "kernel_image_path": "/no/such/kernel" } }).to_string(), "No such file"),
        (
            json!({ "boot-source": boot, "machine-config": { "vcpu_count": 33, "mem_size_mib": 64 } })
                .to_string(),
            "vCPUs",
        ),
        (json!({ "machine-config": { "vcpu_count": 1, "mem_size_mib": 64 } }).to_string(), "kernel"),
    ] {
        fs::write(&path, &config).unwrap();
        let output =
            faultless(&["--api-sock", socket.to_str().unwrap(), "--config-file", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(BAD_CONFIGURATION), "{config}: {output:?}");
        assert!(stderr(&output).contains(reason), "{config}: {}", stderr(&output));
        assert!(!socket.exists(), "{config}: it left its socket behind");
    }
    let missing = faultless(&["--config-file", "/no/such/config", "--no-api"]);
    assert_eq!(missing.status.code(), Some(BAD_CONFIGURATION));
    assert!(stderr(&missing).contains("/no/such/config"));
}

/// Everything that can be set, set to something that is no default.
fn set_everything(vmm: &Vmm) {
    let path = |name: &str| vmm.folder().join(name);
    for disk in ["root", "data"] {
        fs::write(path(disk), vec![0x5a; 1 << 20]).unwrap();
    }
    let bucket = json!({ "size": 1 << 30, "one_time_burst": 7, "refill_time": 100 });
    let limiter = json!({ "bandwidth": bucket, "ops": bucket });
    let commands = format!("hello disk-read {} 1 rng {} exit", mmio(0), mmio(2));
    let machine = json!({ "vcpu_count": 2, "mem_size_mib": 96, "smt": true, "track_dirty_pages": true, "huge_pages": "Transparent" });
    for (target, body) in [
        ("/machine-config", machine),
        ("/boot-source", json!({ "kernel_image_path": bare_metal(Entry::Linux64), "boot_args": commands })),
        (
            "/drives/data",
            json!({ "drive_id": "data", "path_on_host": path("data"), "is_root_device": false, "cache_type": "Writeback", "io_engine": "Async", "rate_limiter": limiter }),
        ),
        (
            "/drives/root",
            json!({ "drive_id": "root", "path_on_host": path("root"), "is_root_device": true, "is_read_only": true, "partuuid": "0eaa91a0-01" }),
        ),
        ("/entropy", json!({ "rate_limiter": limiter })),
        ("/serial", json!({ "serial_out_path": path("serial"), "rate_limiter": bucket })),
        (
            "/logger",
            json!({ "log_path": path("log"), "level": "Debug", "show_level": true, "show_log_origin": true }),
        ),
        ("/metrics", json!({ "metrics_path": path("metrics"), "emit_id": true })),
    ] {
        vmm.grant("PUT", target, &body);
    }
}

#[test]
fn what_vm_config_answers_starts_the_same_machine_again() {
    on_kvm_host(|| {
        let mut first = Vmm::start();
        set_everything(&first);
        let config = first.get("/vm/config");
        assert_eq!(
            (&config["machine-config"]["mem_size_mib"], &config["drives"][0]["drive_id"]),
            (&json!(96), &json!("root"))
        );
        first.start_instance();
        assert_eq!(first.get("/vm/config"), config, "the start changed it");
        first.ends_cleanly();
        let serial = first.folder().join("serial");
        let said = fs::read_to_string(&serial).unwrap();
        assert!(said.contains("disk-read 1 MiB, 0 failed requests") && said.contains("guest: rng"), "{said}");

        let path = first.folder().join("config");
        let path = path.to_str().unwrap();
        fs::write(path, config.to_string()).unwrap();
        let mut second = Vmm::start_command(&["--no-api", "--config-file", path]);
        second.ends_cleanly();
        let again = fs::read_to_string(&serial).unwrap();
        assert_eq!(again.matches("guest: hello").count(), 2, "{again}");

        let mut waits = config.clone();
        waits["boot-source"]["boot_args"] = json!("spin");
        fs::write(path, waits.to_string()).unwrap();
        let third = Vmm::start_with(&["--config-file", path]);
        assert_eq!((third.state(), third.get("/vm/config")), ("Running".to_owned(), waits));
    });
}

#[test]
fn doctor_says_the_same_to_people_and_programs() {
    on_kvm_host(|| {
        let output = faultless(&["doctor", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["can_run_vm"], true, "this machine runs these tests");
        assert!(output.status.success());
        let table = faultless(&["doctor"]);
        assert!(table.status.success() && report["can_run_linux"].is_boolean());
        for finding in report["findings"].as_array().unwrap() {
            let name = finding["name"].as_str().unwrap();
            assert!(stdout(&table).contains(name), "{name} is missing in the table");
            assert_eq!(finding["ok"] == false, finding["fix"].is_string(), "{finding}");
        }
        for name in ["kvm", "uffd", "memory.hugetlb_2m", "memory.transparent_huge_pages", "io_uring"] {
            assert!(
                report["findings"].as_array().unwrap().iter().any(|finding| finding["name"] == name),
                "{name}"
            );
        }
    });
}

#[test]
fn ctl_drives_a_vm_from_its_first_request_to_its_last() {
    on_kvm_host(|| {
        let mut vmm = Vmm::start();
        let disk = vmm.folder().join("disk");
        fs::write(&disk, vec![0; 1 << 20]).unwrap();
        let socket = vmm.client().path().to_str().unwrap().to_owned();
        let ctl = |words: &[&str]| faultless(&[&["ctl", "--api-sock", &socket], words].concat());
        let table = |words: &[&str]| {
            let output = ctl(words);
            assert!(output.status.success(), "{words:?}: {}", stderr(&output));
            stdout(&output)
        };
        let (kernel, disk) = (bare_metal(Entry::Linux64).to_str().unwrap(), disk.to_str().unwrap());
        for words in [
            &["machine-config", "set", "--cpus", "1", "--memory", "64M"][..],
            &["machine-config", "patch", "--cpus", "2"],
            &["boot-source", kernel, "--cmdline", "echo tick"],
            &["drive", "add", "data", disk, "--io-engine", "async", "--ops", "1000/100"],
            &["entropy"],
            &["start"],
            &["drive", "patch", "data", "--path", disk],
        ] {
            assert_eq!(table(words), "", "{words:?}");
        }
        vmm.wait_for_line("guest: echo");
        assert!(table(&["info"]).contains("state        Running\n"));
        let json: Value = serde_json::from_str(&table(&["--json", "info"])).unwrap();
        assert_eq!(json["state"], "Running");
        assert!(table(&["machine-config", "get"]).contains("vcpu_count         2\n"));
        let config: Value = serde_json::from_str(&table(&["config", "--json"])).unwrap();
        assert_eq!(config, vmm.get("/vm/config"));
        assert!(table(&["prometheus"]).contains("faultless_block_read_bytes_total{drive=\"data\"}"));
        table(&["pause"]);
        assert_eq!(vmm.state(), "Paused");
        table(&["resume"]);
        assert_eq!(vmm.state(), "Running");
        assert!(table(&["raw", "GET", "/version"]).starts_with("firecracker_version  "));

        let refused = ctl(&["start"]);
        assert_eq!((refused.status.code(), stdout(&refused).as_str()), (Some(1), ""));
        assert!(stderr(&refused).contains("not supported after starting"), "{}", stderr(&refused));
        let refused: Value = serde_json::from_str(&stdout(&ctl(&["--json", "start"]))).unwrap();
        assert!(refused["fault_message"].as_str().unwrap().contains("not supported after starting"));
        vmm.signal("TERM");
        vmm.ends_cleanly();
        let gone = ctl(&["info"]);
        assert_eq!(gone.status.code(), Some(1));
        assert!(stderr(&gone).contains("start the VMM with --api-sock"), "{}", stderr(&gone));
    });
}
