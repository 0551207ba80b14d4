//! `faultless snapshot`: files without a VM.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Output};

use serde_json::Value;
use tests::vmm::binary;

use super::*;

const PAGE_BYTES: u64 = 4096;

/// Runs it for so long that it can only be waiting for what never comes.
fn faultless(operation: &str, paths: &[&Path]) -> Output {
    let limit = tests::vmm::WAIT.as_secs().to_string();
    let mut command = Command::new("timeout");
    command.arg(limit).arg(binary()).args(["snapshot", operation]).args(paths).output().unwrap()
}

/// What a command that succeeds prints.
fn printed(operation: &str, paths: &[&Path]) -> String {
    let output = faultless(operation, paths);
    assert!(output.status.success() && output.stderr.is_empty(), "{operation}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The same as JSON.
fn json_of(operation: &str, paths: &[&Path]) -> Value {
    let flags: Vec<_> = [Path::new("--json")].into_iter().chain(paths.iter().copied()).collect();
    serde_json::from_str(&printed(operation, &flags)).unwrap()
}

/// Why a command fails.
fn refusal(operation: &str, paths: &[&Path]) -> String {
    let output = faultless(operation, paths);
    assert_eq!(output.status.code(), Some(1), "{operation}: {output:?}");
    assert!(output.stdout.is_empty(), "{operation}: {output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("faultless: ") && text.lines().count() == 1, "{text}");
    text
}

#[test]
fn a_snapshot_says_what_it_is() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let disk = folder.path().join("disk");
        fs::write(&disk, vec![0; 1 << 20]).unwrap();
        let vmm = with_devices(&disk);
        vmm.pause();
        vmm.save(&files);
        let found = json_of("inspect", &[&files.state]);
        let expected = serde_json::json!({
            "architecture": std::env::consts::ARCH, "instance_id": "anonymous-instance", "vcpu_count": 1,
            "memory_mib": 64, "drives": [{ "drive_id": "data", "path_on_host": disk }], "parent": null,
        });
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(&found[name], value, "{name} of {found}");
        }
        assert_eq!(found["id"].as_str().map(str::len), Some(32), "{found}");
        let sections = found["sections"].as_array().unwrap();
        let names: Vec<_> = sections.iter().map(|section| section["name"].as_str().unwrap()).collect();
        assert!(
            ["meta/0", "vcpu/0", "block/0", "entropy/1", "memory/0"].iter().all(|name| names.contains(name))
        );
        assert!(sections.iter().all(|section| section["bytes"].as_u64() > Some(0)), "{found}");
        let table = printed("inspect", &[&files.state]);
        assert!(table.contains("drives.0.drive_id"), "{table}");
        assert!(
            table.lines().any(|line| line.starts_with("memory_mib ") && line.ends_with(" 64")),
            "{table}"
        );
    });
}

#[test]
fn a_snapshot_is_verified_page_by_page() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        let verified = json_of("verify", &[&files.state, &files.memory]);
        assert_eq!(verified["memory_files"], 1);
        assert!(verified["pages"].as_u64() >= Some(FILLED_MIB << 8), "{verified}");
        let file = OpenOptions::new().write(true).open(&files.memory).unwrap();
        // One page of what the guest has filled, and one that it has never touched.
        file.write_all_at(b"x", 5000 * PAGE_BYTES + 5).unwrap();
        file.write_all_at(b"x", 15_000 * PAGE_BYTES).unwrap();
        let text = refusal("verify", &[&files.state, &files.memory]);
        assert!(
            text.contains("2 pages") && text.contains("5000..5001") && text.contains("saved.memory"),
            "{text}"
        );
        file.set_len(1 << 20).unwrap();
        assert!(refusal("verify", &[&files.state, &files.memory]).contains("truncated"));
    });
}

#[test]
fn files_that_are_none_are_told_and_never_waited_for() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        let (none, pipe) = (folder.path().join("none"), folder.path().join("pipe"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        let to = [folder.path().join("to.state"), folder.path().join("to.memory")];
        for (state, memory, said) in [
            (&none, &files.memory, "there is no snapshot"),
            (&pipe, &files.memory, "is not a regular file"),
            (&files.memory, &files.memory, "is not a snapshot's state file"),
            (&files.state, &none, "No such file or directory"),
            (&files.state, &pipe, "regular file"),
            (&files.state, &files.state, "truncated"),
        ] {
            for (operation, paths) in
                [("verify", vec![state, memory]), ("rebase", vec![state, memory, &to[0], &to[1]])]
            {
                let paths: Vec<_> = paths.into_iter().map(AsRef::as_ref).collect();
                let text = refusal(operation, &paths);
                assert!(text.contains(said), "{operation}: {text}");
            }
        }
        assert!(refusal("inspect", &[&none]).contains("there is no snapshot"));
        assert_eq!(names_in(folder.path()), ["pipe", "saved.memory", "saved.state"]);
    });
}

#[test]
fn a_chain_becomes_one_snapshot_that_stands_alone() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let base = saved(folder.path(), "base");
        let diff = bad_memory::as_diff_over(&base);
        let whole = SnapshotFiles::new(folder.path(), "whole");
        let paths: [&Path; 4] = [&diff.state, &diff.memory, &whole.state, &whole.memory];
        assert_eq!(json_of("verify", &paths[..2])["memory_files"], 2);
        assert_eq!(json_of("inspect", &paths[..1])["parent"]["memory"], serde_json::json!(base.memory));
        assert_eq!(json_of("rebase", &paths)["memory_files"], 2);
        for file in [&base.state, &base.memory, &diff.state, &diff.memory] {
            fs::remove_file(file).unwrap();
        }
        assert_eq!(names_in(folder.path()), ["whole.memory", "whole.state"]);
        let metadata = fs::metadata(&whole.memory).unwrap();
        assert!(metadata.blocks() * 512 < metadata.len(), "what is zero is a hole");
        assert_eq!(json_of("inspect", &[&whole.state])["parent"], Value::Null);
        assert_eq!(json_of("verify", &[&whole.state, &whole.memory])["memory_files"], 1);
        // Over itself, too.
        let paths: [&Path; 2] = [&whole.state, &whole.memory];
        assert_eq!(json_of("rebase", &[paths, paths].concat())["memory_files"], 1);
        assert_eq!(names_in(folder.path()), ["whole.memory", "whole.state"]);
        for backend in ["File", "Lazy"] {
            is_whole(&mut Vmm::restored(&whole, backend));
        }
    });
}

#[test]
fn a_page_that_is_wrong_is_not_made_part_of_a_whole() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        let file = OpenOptions::new().write(true).open(&files.memory).unwrap();
        file.write_all_at(b"x", 5000 * PAGE_BYTES + 5).unwrap();
        let to = SnapshotFiles::new(folder.path(), "to");
        let text = refusal("rebase", &[&files.state, &files.memory, &to.state, &to.memory]);
        assert!(text.contains("is not what was saved"), "{text}");
        assert_eq!(names_in(folder.path()), ["saved.memory", "saved.state"]);
    });
}
