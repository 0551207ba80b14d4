//! Memory that another process serves, as those do that were written for Firecracker.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, seek};
use serde_json::{Value, json};
use tests::vmm::WAIT;

use super::*;

/// A page-fault handler, killed when it goes.
pub(super) struct Handler(Child);

impl Handler {
    /// Serves `memory` to whoever connects to `socket`, as `mode` says.
    pub(super) fn start(socket: &Path, memory: &Path, mode: &str) -> Self {
        let program = env!("CARGO_BIN_EXE_uffd-handler");
        let child = Command::new(program).arg(socket).arg(memory).arg(mode).stderr(Stdio::null()).spawn();
        let handler = Self(child.unwrap());
        let deadline = Instant::now() + WAIT;
        while !socket.exists() {
            assert!(Instant::now() < deadline, "the handler does not listen");
            std::thread::sleep(Duration::from_millis(1));
        }
        handler
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A saved guest, and where its handler is to listen.
struct Saved {
    folder: tempfile::TempDir,
    files: SnapshotFiles,
}

impl Saved {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        Self { folder, files }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn handler(&self, socket: &Path, mode: &str) -> Handler {
        Handler::start(socket, &self.files.memory, mode)
    }

    fn load(&self, socket: &Path) -> Value {
        let mut load = self.files.load("Uffd");
        load["mem_backend"]["backend_path"] = json!(socket);
        load
    }
}

/// Waits until the VMM says that its handler is gone.
fn wait_for_handler_failure(vmm: &Vmm) {
    let deadline = Instant::now() + WAIT;
    while vmm.get("/")["handler_failure"].is_null() {
        assert!(Instant::now() < deadline, "nobody says that the handler is gone: {}", vmm.get("/"));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_handler_as_for_firecracker_serves_the_guest() {
    on_kvm_host(|| {
        let saved = Saved::new();
        let socket = saved.socket("handler");
        let _handler = saved.handler(&socket, "good");
        let mut vmm = Vmm::loaded(&saved.load(&socket));
        is_whole(&mut vmm);
        vmm.pause();
        let again = SnapshotFiles::new(saved.folder.path(), "again");
        vmm.save(&again);
        vmm.resume();
        is_whole(&mut vmm);
        quits(&mut vmm);
        let mut vmm = Vmm::restored(&again, "Lazy");
        is_whole(&mut vmm);
        quits(&mut vmm);
    });
}

#[test]
fn a_handler_that_dies_is_told_and_replaced() {
    on_kvm_host(|| {
        let saved = Saved::new();
        let first = saved.socket("first");
        let _first = saved.handler(&first, "die-after=200");
        let mut vmm = Vmm::loaded(&saved.load(&first));
        vmm.type_text(&format!("walk {FILLED_MIB} {SEED}\n"));
        wait_for_handler_failure(&vmm);
        assert_eq!(vmm.state(), "Running", "the guest waits, and nothing is lost");
        let nobody = saved.socket("nobody");
        let message = vmm.refuse("PUT", "/snapshot/handler", &json!({ "backend_path": nobody }));
        assert!(message.contains("No such file or directory"), "{message}");
        let second = saved.socket("second");
        let _second = saved.handler(&second, "good");
        vmm.grant("PUT", "/snapshot/handler", &json!({ "backend_path": second }));
        let line = vmm.wait_for_line("guest: walk");
        assert!(line.contains(" 0 wrong pages"), "{line}");
        assert!(vmm.get("/")["handler_failure"].is_null());
        quits(&mut vmm);
    });
}

#[test]
fn a_handler_that_dies_is_replaced_while_the_guest_is_saved() {
    on_kvm_host(|| {
        let saved = Saved::new();
        let first = saved.socket("first");
        let _first = saved.handler(&first, "die-after=200");
        let mut vmm = Vmm::loaded(&saved.load(&first));
        vmm.pause();
        let again = SnapshotFiles::new(saved.folder.path(), "again");
        let asked = vmm.begin_save(&again.creation());
        wait_for_handler_failure(&vmm);
        let refused = vmm.refuse("PATCH", "/vm", &json!({ "state": "Resumed" }));
        assert!(refused.contains("is being saved"), "{refused}");
        let second = saved.socket("second");
        let _second = saved.handler(&second, "good");
        vmm.grant("PUT", "/snapshot/handler", &json!({ "backend_path": second }));
        let answer = asked.join().unwrap().unwrap();
        assert!(answer.is_success(), "{}", answer.fault_message());
        vmm.resume();
        is_whole(&mut vmm);
        quits(&mut vmm);
        is_whole(&mut Vmm::restored(&again, "Lazy"));
    });
}

#[test]
fn a_machine_whose_handler_is_gone_while_it_is_saved_can_be_ended() {
    on_kvm_host(|| {
        let saved = Saved::new();
        let socket = saved.socket("handler");
        let _handler = saved.handler(&socket, "die-after=200");
        let mut vmm = Vmm::loaded(&saved.load(&socket));
        vmm.pause();
        let again = SnapshotFiles::new(saved.folder.path(), "again");
        let asked = vmm.begin_save(&again.creation());
        wait_for_handler_failure(&vmm);
        vmm.signal("TERM");
        vmm.wait_for_exit();
        // Refused, or cut off with the process.
        assert!(!asked.join().unwrap().is_ok_and(|answer| answer.is_success()));
        assert!(!again.state.exists(), "half a snapshot is in its place");
    });
}

#[test]
fn without_a_handler_nothing_is_loaded_and_clients_know_the_text() {
    on_kvm_host(|| {
        let saved = Saved::new();
        let message = Vmm::refused_load(&saved.load(&saved.socket("nobody")));
        assert_eq!(
            message,
            "Load snapshot error: Failed to restore from snapshot: Failed to load guest memory: Error creating guest \
             memory from uffd: Failed to connect to UDS Unix stream: No such file or directory (os error 2)"
        );
    });
}

#[test]
fn a_machine_without_a_handler_gets_none() {
    on_kvm_host(|| {
        let vmm = filled();
        let message = vmm.refuse("PUT", "/snapshot/handler", &json!({ "backend_path": "/nowhere" }));
        assert!(message.contains("not served by another process"), "{message}");
    });
}

/// The handler places pages without protection, so that all it has placed counts as written, once.
#[test]
fn a_machine_that_is_handed_over_has_diffs() {
    on_kvm_host(|| {
        let saved = Saved::new();
        let socket = saved.socket("handler");
        let _handler = saved.handler(&socket, "good");
        let mut load = saved.load(&socket);
        load["track_dirty_pages"] = json!(true);
        let mut vmm = Vmm::loaded(&load);
        let diffs = ["first", "second"].map(|name| SnapshotFiles::new(saved.folder.path(), name));
        for (files, seed) in diffs.iter().zip(100..) {
            vmm.type_text(&format!("fill 5 {seed}\n"));
            vmm.wait_for_line("guest: done");
            vmm.pause();
            let diff = json!({ "snapshot_type": "Diff" });
            vmm.grant("PUT", "/snapshot/create", &tests::vmm::snapshot::with(files.creation(), &diff));
            vmm.resume();
        }
        is_refilled(&mut vmm, 101);
        quits(&mut vmm);
        // Who knows where the memory of the base is lays the diffs over it.
        let merged = saved.folder.path().join("merged");
        std::fs::copy(&saved.files.memory, &merged).unwrap();
        diffs.iter().for_each(|files| lay_over(&merged, &files.memory));
        let socket = saved.socket("merged-handler");
        let _handler = Handler::start(&socket, &merged, "good");
        let mut load = diffs[1].load("Uffd");
        load["mem_backend"]["backend_path"] = json!(socket);
        let mut vmm = Vmm::loaded(&load);
        is_refilled(&mut vmm, 101);
        quits(&mut vmm);
        let message = Vmm::refused_load(&diffs[1].load("Lazy"));
        assert!(message.contains("lay the diff over that file"), "{message}");
    });
}

fn is_refilled(vmm: &mut Vmm, seed: u64) {
    vmm.type_text(&format!("walk 5 {seed}\n"));
    let line = vmm.wait_for_line("guest: walk");
    assert!(line.contains("walk 5 MiB, 0 wrong pages"), "{line}");
    vmm.wait_for_line("guest: done");
}

/// Copies the data of a sparse file, as tools for Firecracker's diffs do.
fn lay_over(base: &Path, diff: &Path) {
    let (base, diff) = (OpenOptions::new().write(true).open(base).unwrap(), File::open(diff).unwrap());
    let mut at = 0;
    while let Ok(start) = seek(&diff, SeekFrom::Data(at)) {
        at = seek(&diff, SeekFrom::Hole(start)).unwrap();
        let mut bytes = vec![0; usize::try_from(at - start).unwrap()];
        diff.read_exact_at(&mut bytes, start).unwrap();
        base.write_all_at(&bytes, start).unwrap();
    }
}
