//! The commands that README shows, run as they stand there: only paths are put in, and a guest that stays.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use tests::guest::{Entry, bare_metal};
use tests::host::on_kvm_host;
use tests::vmm::binary;

const README: &str = include_str!("../../README.md");
const SECTION: &str = "## Use it";
/// Where its sockets are; in the script, the folder that it runs in.
const SOCKETS: &str = "/tmp/";
/// Stops at the first command that fails, and takes the VMMs along. README leaves it to the person who types that a
/// socket is there a moment after the `&`, and names page-fault handlers without a word on how they are started.
const HEAD: &str = r#"set -eu; trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
wait_for() { for _ in $(seq 6000); do [ -S "$1" ] && return; sleep 0.01; done; return 1; }
handler() { "$UFFD_HANDLER" "$1" vm.memory & wait_for "$1"; }"#;

/// The indented lines of a section, without what commands print where prompts tell them apart.
fn commands() -> Vec<&'static str> {
    let section = README.split_once(SECTION).expect("README has this section").1;
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("\n\n").filter(|block| block.starts_with("    "));
    let lines = blocks.flat_map(|block| {
        let has_prompts = block.lines().any(|line| line.starts_with("    $ "));
        block.lines().filter(move |line| !has_prompts || line.starts_with("    $ "))
    });
    lines.map(|line| line.trim_start().trim_start_matches("$ ")).collect()
}

/// A line of README as the script has it.
fn adapt(line: &str) -> String {
    let line = line.replace(SOCKETS, "").replace("curl -sS", "curl -sS --fail-with-body");
    // A guest that does not end at once, since more is asked of it.
    let line = line.replace("reboot=t\"", "reboot=t spin\"");
    if line.ends_with('&') {
        let socket = line.split(' ').find(|word| word.ends_with(".sock")).expect("a VMM has a socket");
        format!("{line}\nwait_for {socket}")
    } else if line.contains("--backend uffd") {
        format!("handler handler.sock\n{line}")
    } else if line.contains("snapshot handler") {
        format!("handler other.sock\n{line}")
    } else {
        line
    }
}

fn stage(folder: &Path) {
    fs::copy(bare_metal(Entry::Linux64), folder.join("vmlinuz")).unwrap();
    for name in ["initrd.img", "root.ext4", "second.ext4", "third.ext4", "fourth.ext4"] {
        fs::write(folder.join(name), vec![0x5a; 1 << 20]).unwrap();
    }
}

#[test]
fn its_commands_do_what_they_say() {
    let commands = commands();
    for word in [
        "faultless doctor",
        "faultless run",
        "faultless --api-sock",
        "api actions",
        "faultless ctl",
        "api snapshot/create",
        "faultless snapshot verify",
    ] {
        assert!(commands.iter().any(|line| line.starts_with(word)), "README does not show {word:?} any more");
    }
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        stage(folder.path());
        let script: Vec<_> = commands.iter().map(|line| adapt(line)).collect();
        let script = format!("{HEAD}\n{}", script.join("\n"));
        let path = format!("{}:{}", binary().parent().unwrap().display(), std::env::var("PATH").unwrap());
        let output = Command::new("bash")
            .args(["-xc", &script])
            .current_dir(folder.path())
            .env("PATH", path)
            .env("UFFD_HANDLER", env!("CARGO_BIN_EXE_uffd-handler"))
            .stdin(Stdio::null())
            .process_group(0)
            .output()
            .unwrap();
        let (said, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}\n{errors}");
        for answer in [
            "can run microVMs",
            "state        Running",
            "faultless_uart_write_total",
            "memory/0",
            "memory_files",
        ] {
            assert!(said.contains(answer), "{answer:?} is not in what was printed:\n{said}\n{errors}");
        }
    });
}

#[test]
fn what_doctor_prints_there_is_what_it_prints() {
    let shown =
        README.lines().filter(|line| line.starts_with("    ok    ") || line.starts_with("    miss  "));
    let names: Vec<_> = shown.filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert!(!names.is_empty());
    on_kvm_host(|| {
        let output = Command::new(binary()).arg("doctor").output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        for name in names {
            assert!(
                printed.lines().any(|line| line.split_whitespace().nth(1) == Some(name)),
                "{name}:\n{printed}"
            );
        }
    });
}
