//! The process under test: one `faultless` with its API socket, its console and its end.
//!
//! # Invariants
//!
//! - Every wait has a limit, and what was printed until then is in the message.
//! - No process outlives its [`Vmm`].
//! - It runs in an empty folder, which is still empty when it has ended cleanly.

mod console;
mod counters;
mod launch;
pub mod snapshot;
mod standstill;
mod terminal;
mod threads;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use api::client::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::guest::{Entry, bare_metal};
use console::Console;
pub use launch::Launch;
pub use snapshot::SnapshotFiles;
pub use terminal::Terminal;

/// How long anything may take: enough for a slow lab on a busy machine.
pub const WAIT: Duration = Duration::from_secs(60);
/// How long a look at whether there is an API takes at most.
const API_PATIENCE: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The program under test: `$FAULTLESS_BIN`, or the one that cargo built beside this executable.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("FAULTLESS_BIN") {
        // Absolute, since it runs in a folder of its own.
        return std::path::absolute(path).expect("FAULTLESS_BIN is a path");
    }
    let executable = std::env::current_exe().expect("a running program has a path");
    let folder = executable.parent().expect("a file is in a folder");
    let folder =
        if folder.ends_with("deps") { folder.parent().expect("deps is in a folder") } else { folder };
    let binary = folder.join("faultless");
    assert!(binary.exists(), "{} is not there: `cargo build -p vmm` makes it", binary.display());
    binary
}

/// A running VMM. Dropping it kills it.
pub struct Vmm {
    child: Child,
    client: Client,
    console: Console,
    folder: TempDir,
    api_ready_after: Duration,
}

impl Vmm {
    /// Starts a VMM and waits until its API answers.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more arguments.
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::serve(Launch::new(arguments).with_api())
    }

    /// The same on a socket that is not in its own folder.
    pub fn start_on(socket: &Path) -> Self {
        Self::serve(Launch::new(&[]).with_api_on(socket))
    }

    /// Starts what is about to be launched, with a log, and waits until its API answers.
    pub fn serve(launch: Launch) -> Self {
        let started = Instant::now();
        // The log has a file of its own: by default it goes to stdout, into the midst of the guest's lines.
        let mut vmm = launch.with_log().start();
        vmm.wait_for_api();
        vmm.api_ready_after = started.elapsed();
        vmm
    }

    /// Starts a program without an API to wait for, such as `run …`.
    pub fn start_command(arguments: &[&str]) -> Self {
        Launch::new(arguments).start()
    }

    /// Starts a VMM that is about to boot the bare-metal guest with these commands, on 1 vCPU and 64 MiB.
    pub fn configured(commands: &str) -> Self {
        let vmm = Self::start();
        vmm.machine(1, 64);
        vmm.boot_source(bare_metal(Entry::Linux64), None, commands);
        vmm
    }

    /// Boots the bare-metal guest with these commands.
    pub fn booted(commands: &str) -> Self {
        let vmm = Self::configured(commands);
        vmm.start_instance();
        vmm
    }

    /// Waits until its API answers.
    pub fn wait_for_api(&mut self) {
        let deadline = Instant::now() + WAIT;
        while !self.has_api() {
            let ended = self.ended();
            assert!(ended.is_none(), "the VMM ended before its API answered: {ended:?}\n{}", self.log());
            assert!(Instant::now() < deadline, "no API within {WAIT:?}\n{}", self.log());
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// The client of its API.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether its API answers at this moment.
    pub fn has_api(&self) -> bool {
        self.client.clone().with_timeout(API_PATIENCE).raw("GET", "/", None).is_ok()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// From the process's start to its first answer.
    pub fn api_ready_after(&self) -> Duration {
        self.api_ready_after
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A folder of its own, for disks and the like, that goes when it goes.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its log, and behind it what it wrote to stderr.
    pub fn log(&self) -> String {
        [launch::LOG_FILE, launch::STDERR_FILE]
            .map(|name| fs::read(self.folder.path().join(name)).unwrap_or_default())
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .concat()
    }

    /// Sends a request with a JSON body and returns the answer, whatever it is.
    pub fn request(&self, method: &str, path: &str, body: &Value) -> Response {
        let body = if body.is_null() { None } else { Some(body.to_string()) };
        let answer = self.client.raw(method, path, body.as_ref().map(String::as_bytes));
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log()))
    }

    /// Sends a request that must be granted.
    pub fn grant(&self, method: &str, path: &str, body: &Value) -> Response {
        let response = self.request(method, path, body);
        assert!(
            response.is_success(),
            "{method} {path} {body}: {} {}",
            response.status,
            response.fault_message()
        );
        response
    }

    /// Sends a request that must be refused with status 400, and returns its fault message.
    pub fn refuse(&self, method: &str, path: &str, body: &Value) -> String {
        let response = self.request(method, path, body);
        assert_eq!(response.status, 400, "{method} {path} {body} should be refused");
        response.fault_message()
    }

    /// Sends a request and returns the answer's JSON.
    pub fn get(&self, path: &str) -> Value {
        self.grant("GET", path, &Value::Null).json().expect("the API answers in JSON")
    }

    /// `Not started`, `Running` or `Paused`.
    pub fn state(&self) -> String {
        self.get("/")["state"].as_str().expect("the state is a word").to_owned()
    }

    /// Stops the guest where it is.
    pub fn pause(&self) {
        self.grant("PATCH", "/vm", &json!({ "state": "Paused" }));
    }

    /// Lets a paused guest go on.
    pub fn resume(&self) {
        self.grant("PATCH", "/vm", &json!({ "state": "Resumed" }));
    }

    /// Sets the machine's size.
    pub fn machine(&self, cpus: u32, memory_mib: u32) {
        self.grant("PUT", "/machine-config", &json!({ "vcpu_count": cpus, "mem_size_mib": memory_mib }));
    }

    /// Sets what to boot.
    pub fn boot_source(&self, kernel: &Path, initrd: Option<&Path>, command_line: &str) {
        let mut body = json!({ "kernel_image_path": kernel, "boot_args": command_line });
        if let Some(initrd) = initrd {
            body["initrd_path"] = json!(initrd);
        }
        self.grant("PUT", "/boot-source", &body);
    }

    /// Attaches a disk.
    pub fn drive(&self, id: &str, path: &Path, is_root: bool, is_read_only: bool) {
        let body = json!({
            "drive_id": id, "path_on_host": path, "is_root_device": is_root, "is_read_only": is_read_only,
        });
        self.grant("PUT", &format!("/drives/{id}"), &body);
    }

    /// Attaches an entropy device.
    pub fn entropy(&self) {
        self.grant("PUT", "/entropy", &json!({}));
    }

    /// Boots.
    pub fn start_instance(&self) {
        self.grant("PUT", "/actions", &json!({ "action_type": "InstanceStart" }));
    }

    /// Waits for a line on the console that contains `text`, and returns it. Lines before it are passed over for good.
    pub fn wait_for_line(&mut self, text: &str) -> String {
        self.console.wait_for_line(text, WAIT).unwrap_or_else(|printed| {
            panic!("no line with {text:?} within {WAIT:?}; the console:\n{printed}\nthe log:\n{}", self.log())
        })
    }

    /// Types on the console.
    pub fn type_text(&mut self, text: &str) {
        self.console.type_text(text);
    }

    /// All that the console printed.
    pub fn console(&self) -> String {
        self.console.printed()
    }

    /// When the console began to print: the moment in which its first byte was read.
    pub fn first_output(&self) -> Option<Instant> {
        self.console.began()
    }

    /// Kills the process, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    /// Waits for the process to end by itself.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + WAIT;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "it did not end within {WAIT:?}; the console:\n{}",
                self.console()
            );
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits for the process to end with success, and checks that it left nothing behind.
    pub fn ends_cleanly(&mut self) {
        let status = self.wait_for_exit();
        assert!(status.success(), "{status}; the console:\n{}\nthe log:\n{}", self.console(), self.log());
        self.left_nothing_behind();
    }

    /// Checks that an ended process left no socket, and no file where it ran.
    pub fn left_nothing_behind(&self) {
        assert!(!self.client.path().exists(), "it left its socket behind");
        let left =
            fs::read_dir(self.folder().join(launch::WORKING_FOLDER)).expect("the folder it ran in is there");
        let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
        assert!(left.is_empty(), "it left files in its working folder: {left:?}");
    }

    /// Sends it a signal, by the name that `kill` knows.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "cannot send SIG{name}");
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
