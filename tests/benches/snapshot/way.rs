//! In which way a machine goes on from its files.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::vmm::snapshot::with;
use tests::vmm::{SnapshotFiles, Vmm, WAIT};

use crate::clock::Clock;
use crate::guest::{WORKING_SET_MIB, command, number_before};

const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Where the guest's memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Lazy { records_working_set: bool },
    File,
    Uffd,
}

/// What one restore took.
pub(crate) struct Restored {
    pub(crate) vmm: Vmm,
    /// From the request to its answer, which says that the guest runs.
    pub(crate) answer_ms: f64,
    /// From the request to the first byte that the guest prints.
    pub(crate) output_ms: f64,
    /// It serves the memory.
    _handler: Option<Handler>,
}

impl Way {
    /// Lets a machine go on in a process that is up already. What the guest says first is an answer to what was typed
    /// before it ran.
    pub(crate) fn restore(self, files: &SnapshotFiles) -> Restored {
        let socket = files.memory.with_extension("handler");
        let handler = (self == Self::Uffd).then(|| Handler::start(&socket, &files.memory));
        let mut vmm = Vmm::start();
        vmm.type_text("hello\n");
        let load = self.load(files, &socket);
        let asked = Instant::now();
        vmm.grant("PUT", "/snapshot/load", &load);
        let answer_ms = asked.elapsed().as_secs_f64() * 1e3;
        vmm.wait_for_line("guest: done");
        let output = vmm.first_output().expect("a guest that was heard has said something");
        let output_ms = output.duration_since(asked).as_secs_f64() * 1e3;
        Restored { vmm, answer_ms, output_ms, _handler: handler }
    }

    fn load(self, files: &SnapshotFiles, socket: &Path) -> Value {
        match self {
            Self::Lazy { records_working_set } => {
                with(files.load("Lazy"), &json!({ "lazy": { "working_set": records_working_set } }))
            }
            Self::File => files.load("File"),
            Self::Uffd => with(
                files.load("Uffd"),
                &json!({ "mem_backend": { "backend_type": "Uffd", "backend_path": socket } }),
            ),
        }
    }
}

impl Restored {
    /// How long the guest takes to touch its working set, by its own clock.
    pub(crate) fn touch_ms(&mut self, clock: Clock) -> f64 {
        let line = command(&mut self.vmm, &format!("touch {WORKING_SET_MIB}"));
        clock.ms(number_before(&line, "cycles"))
    }
}

/// A page-fault handler as they are written for Firecracker, killed when it goes.
struct Handler {
    child: Child,
    socket: PathBuf,
}

impl Handler {
    fn start(socket: &Path, memory: &Path) -> Self {
        let program = env!("CARGO_BIN_EXE_uffd-handler");
        let child = Command::new(program).arg(socket).arg(memory).stderr(Stdio::null()).spawn();
        let child = child.expect("cargo has built the handler");
        let handler = Self { child, socket: socket.to_owned() };
        let deadline = Instant::now() + WAIT;
        while !socket.exists() {
            assert!(Instant::now() < deadline, "the handler does not listen");
            std::thread::sleep(POLL_INTERVAL);
        }
        handler
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // All fail only for one that has ended, or has not begun to listen.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
