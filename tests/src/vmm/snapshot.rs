//! Saving a machine, and going on from what was saved.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use api::client::{ClientError, Response};
use serde_json::{Value, json};

use super::Vmm;

/// The two files of a snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotFiles {
    /// The state file.
    pub state: PathBuf,
    /// The memory file.
    pub memory: PathBuf,
}

impl SnapshotFiles {
    /// Files of this name in `folder`. They need not be there.
    pub fn new(folder: &Path, name: &str) -> Self {
        Self { state: folder.join(format!("{name}.state")), memory: folder.join(format!("{name}.memory")) }
    }

    /// What is asked to write them.
    pub fn creation(&self) -> Value {
        json!({ "snapshot_path": self.state, "mem_file_path": self.memory })
    }

    /// What is asked to go on from them, by this backend, running.
    pub fn load(&self, backend: &str) -> Value {
        json!({
            "snapshot_path": self.state,
            "mem_backend": { "backend_type": backend, "backend_path": self.memory },
            "resume_vm": true,
        })
    }
}

impl Vmm {
    /// Saves the machine, which stands still.
    pub fn save(&self, files: &SnapshotFiles) {
        self.grant("PUT", "/snapshot/create", &files.creation());
    }

    /// Has the machine stand still, and saves it as this type of snapshot.
    pub fn pause_and_save(&self, files: &SnapshotFiles, snapshot_type: &str) {
        self.pause();
        let typed = with(files.creation(), &json!({ "snapshot_type": snapshot_type }));
        self.grant("PUT", "/snapshot/create", &typed);
    }

    /// Saves the machine while it runs.
    pub fn save_live(&self, files: &SnapshotFiles) {
        self.grant("PUT", "/snapshot/create", &with(files.creation(), &json!({ "live": true })));
    }

    /// A new process in which the machine goes on from its files.
    pub fn restored(files: &SnapshotFiles, backend: &str) -> Self {
        Self::loaded(&files.load(backend))
    }

    /// The same, as `load` says.
    pub fn loaded(load: &Value) -> Self {
        let vmm = Self::start();
        vmm.grant("PUT", "/snapshot/load", load);
        vmm
    }

    /// Asks a new process to go on, which is to be refused, and to end then. Gives the reason.
    pub fn refused_load(load: &Value) -> String {
        let mut vmm = Self::start();
        let message = vmm.refuse("PUT", "/snapshot/load", load);
        let status = vmm.wait_for_exit();
        assert!(!status.success(), "what is left of a restore that failed is not tried again: {status}");
        message
    }

    /// Asks for a snapshot and gives the answer, whatever it is.
    pub fn try_save(&self, files: &SnapshotFiles) -> Response {
        self.request("PUT", "/snapshot/create", &files.creation())
    }

    /// Asks for a snapshot as `creation` says and does not wait for the answer, which the thread gives.
    pub fn begin_save(&self, creation: &Value) -> JoinHandle<Result<Response, ClientError>> {
        let (client, body) = (self.client().clone(), creation.to_string());
        std::thread::spawn(move || client.raw("PUT", "/snapshot/create", Some(body.as_bytes())))
    }
}

/// `body` with the fields of `more`.
pub fn with(mut body: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}
