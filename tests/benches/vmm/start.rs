//! How long a process and its guest take to begin.
//!
//! ```text
//!   spawn ──▶ socket's file appears (inotify) ──▶ connect ──▶ GET / answered      process start to API ready
//!   connect ──▶ PUT /actions ──▶ first byte on stdout, stamped by its own thread  InstanceStart to first output
//! ```
//!
//! Nothing polls while the process starts: on two CPUs a polling parent would take one of them away. The process is
//! spawned without anything between fork and exec, so that the standard library takes `posix_spawn`.

use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use api::client::Client;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::guest::{Entry, bare_metal};
use tests::vmm::{WAIT, binary};

use crate::figure::{Figure, Target, Unit, milliseconds};
use crate::options::Effort;

const SOCKET: &str = "api.socket";
/// The first ones find neither the program nor the guest in the page cache.
const WARM_UPS: usize = 3;
/// To which the kernel adds its timer slack, of 50 µs.
const RETRY_INTERVAL: Duration = Duration::from_micros(20);
const INOTIFY_BUFFER_BYTES: usize = 4096;
const API_READY_MS_MAX: f64 = 3.0;
const FIRST_OUTPUT_MS_MAX: f64 = 10.0;
const MEMORY_MIB: u32 = 512;

/// Process start to API ready.
pub(crate) fn api_ready(effort: &Effort) -> Figure {
    let samples = (0..WARM_UPS + effort.processes).map(|_| Process::start().ready_after).skip(WARM_UPS);
    let samples = milliseconds(samples);
    Figure::new("process start to API ready (spawn to GET / answered)", Unit::Milliseconds, samples)
        .with_target(Target::median(API_READY_MS_MAX))
}

/// InstanceStart to the guest's first output, and to the answer.
pub(crate) fn first_output(effort: &Effort) -> [Figure; 2] {
    let starts = (0..WARM_UPS + effort.processes).map(|_| start_instance()).skip(WARM_UPS);
    let (outputs, answers): (Vec<_>, Vec<_>) = starts.unzip();
    let figure = |what: &str, samples| {
        let name = format!("InstanceStart to {what}, 1 vCPU, {MEMORY_MIB} MiB");
        Figure::new(name, Unit::Milliseconds, milliseconds(samples))
    };
    [
        figure("the guest's first output", outputs).with_target(Target::median(FIRST_OUTPUT_MS_MAX)),
        figure("its answer", answers),
    ]
}

/// From just before the request: to the first byte of output, and to the answer.
fn start_instance() -> (Duration, Duration) {
    let mut process = Process::start();
    let first_byte = process.first_byte();
    process.grant("/machine-config", &json!({ "vcpu_count": 1, "mem_size_mib": MEMORY_MIB }));
    let kernel = bare_metal(Entry::Linux64);
    process.grant("/boot-source", &json!({ "kernel_image_path": kernel, "boot_args": "hello spin" }));
    let started = Instant::now();
    process.grant("/actions", &json!({ "action_type": "InstanceStart" }));
    let answered = started.elapsed();
    let stamp = first_byte.recv_timeout(WAIT).expect("a guest that was started says hello");
    (stamp.duration_since(started), answered)
}

/// A VMM that was started to be timed. Dropping it kills it.
struct Process {
    child: Child,
    client: Client,
    ready_after: Duration,
    _folder: TempDir,
}

impl Process {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("the folder for temporary files can be written");
        let socket = folder.path().join(SOCKET);
        let mut command = Command::new(binary());
        command.arg("--api-sock").arg(&socket);
        command.arg("--log-path").arg(folder.path().join("log"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let client = Client::new(socket);
        let arrival = Arrival::watch(folder.path());
        let started = Instant::now();
        let child = command.spawn().expect("the program under test can be run");
        let mut process = Self { child, client, ready_after: Duration::ZERO, _folder: folder };
        arrival.wait();
        process.wait_for_answer();
        process.ready_after = started.elapsed();
        // Only now: the kernel takes some ticks to close it, in which it waits for every reader of its watches.
        drop(arrival);
        process
    }

    /// The socket's file is there a moment before its listener is, so a refused connection is tried again. That makes
    /// the time longer by a tenth of a millisecond at most, and never shorter.
    fn wait_for_answer(&self) {
        let deadline = Instant::now() + WAIT;
        while let Err(error) = self.client.raw("GET", "/", None) {
            assert!(Instant::now() < deadline, "no API within {WAIT:?}: {error}");
            std::thread::sleep(RETRY_INTERVAL);
        }
    }

    /// When the first byte of output comes.
    fn first_byte(&mut self) -> Receiver<Instant> {
        let (sender, receiver) = channel();
        let stdout = self.child.stdout.take().expect("stdout was asked to be a pipe");
        // It ends with the process.
        std::thread::spawn(move || {
            if let Some(stamp) = stamp_first_byte(stdout) {
                // Nobody waits any more: then nobody wants to know.
                let _ = sender.send(stamp);
            }
        });
        receiver
    }

    fn grant(&self, path: &str, body: &Value) {
        let body = body.to_string();
        let answer = self.client.raw("PUT", path, Some(body.as_bytes()));
        let answer = answer.unwrap_or_else(|error| panic!("PUT {path}: {error}"));
        assert!(answer.is_success(), "PUT {path} {body}: {}", answer.fault_message());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn stamp_first_byte(mut stdout: ChildStdout) -> Option<Instant> {
    let count = stdout.read(&mut [0]).unwrap_or(0);
    (count == 1).then(Instant::now)
}

/// Waits for the socket's file, asleep.
struct Arrival(rustix::fd::OwnedFd);

impl Arrival {
    fn watch(folder: &Path) -> Self {
        let events = inotify::init(inotify::CreateFlags::CLOEXEC).expect("the host has inotify");
        inotify::add_watch(&events, folder, inotify::WatchFlags::CREATE)
            .expect("a new folder can be watched");
        Self(events)
    }

    fn wait(&self) {
        let mut buffer = [MaybeUninit::uninit(); INOTIFY_BUFFER_BYTES];
        let mut reader = inotify::Reader::new(self.0.as_fd(), &mut buffer);
        let limit = Timespec::try_from(WAIT).expect("a minute is a time");
        loop {
            if reader.is_buffer_empty() {
                let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
                let ready = poll(&mut fds, Some(&limit)).expect("an inotify descriptor can be polled");
                assert!(ready == 1, "no socket within {WAIT:?}");
            }
            let event = reader.next().expect("an inotify descriptor that is ready can be read");
            if event.file_name().is_some_and(|name| name.to_bytes() == SOCKET.as_bytes()) {
                return;
            }
        }
    }
}
