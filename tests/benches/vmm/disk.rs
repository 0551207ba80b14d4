//! Block throughput: the guest's driver keeps requests in flight; beside it, the host does the same without a guest.
//!
//! ```text
//!   guest   type "quit" ─▶ echo ends ─▶ disk-read … ─▶ its line on the console     × runs, in turn
//!   host    pread(buffer 0), pread(buffer 1), …  same file, sizes, number of buffers  × runs, in turn
//! ```
//!
//! The clock is the host's on both sides. The guest's times so include one line in and one line out.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tests::guest::{Entry, bare_metal};
use tests::vmm::Vmm;

use crate::options::Effort;
use crate::samples::Samples;

/// A file there is in memory: no disk of the host's has a part in the times.
pub(crate) const MEDIUM: &str = "a file on /dev/shm";
const FOLDER: &str = "/dev/shm";
const DISK_MIB: u64 = 128;
const MIB: u64 = 1 << 20;
/// Where the first virtio-mmio device is.
const MMIO_BASE: u64 = 0xd000_0000;
const ENGINES: [&str; 2] = ["Sync", "Async"];
/// Request size in KiB, requests in flight, MiB to move: large ones, small ones, and how long one takes.
const SHAPES: [(u64, u64, u64); 3] = [(128, 16, 1024), (4, 16, 256), (4, 1, 64)];

/// What is asked of the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// The drive's `io_engine`.
    pub(crate) engine: &'static str,
    write: bool,
    pub(crate) request_kib: u64,
    pub(crate) in_flight: u64,
    mib: u64,
}

impl Load {
    pub(crate) fn verb(&self) -> &'static str {
        if self.write { "write" } else { "read" }
    }

    fn command(&self) -> String {
        let Self { mib, request_kib, in_flight, .. } = self;
        format!("disk-{} {MMIO_BASE} {mib} {request_kib} {in_flight}", self.verb())
    }

    fn mib_per_second(&self, took: Duration) -> f64 {
        self.mib as f64 / took.as_secs_f64()
    }
}

/// Both sides, in MiB/s.
pub(crate) struct Comparison {
    pub(crate) load: Load,
    pub(crate) guest: Samples,
    pub(crate) host: Samples,
}

impl Comparison {
    /// What is left of the host's throughput.
    pub(crate) fn ratio(&self) -> f64 {
        self.guest.median() / self.host.median()
    }
}

/// Every engine, direction and shape.
pub(crate) fn throughput(effort: &Effort) -> Vec<Comparison> {
    let disk = Disk::new();
    loads(effort).map(|load| compare(load, &disk, effort.transfers)).collect()
}

fn loads(effort: &Effort) -> impl Iterator<Item = Load> {
    let divisor = effort.transfer_divisor;
    SHAPES.into_iter().flat_map(move |(request_kib, in_flight, mib)| {
        let load = move |engine, write| Load { engine, write, request_kib, in_flight, mib: mib / divisor };
        [false, true].into_iter().flat_map(move |write| ENGINES.map(|engine| load(engine, write)))
    })
}

fn compare(load: Load, disk: &Disk, runs: usize) -> Comparison {
    let mut guest = GuestSide::boot(&load, &disk.path, runs + 1);
    let mut host = HostSide::new(load, &disk.path);
    // The first of each touches its buffers for the first time.
    guest.run();
    host.run();
    let samples = (0..runs).map(|_| (guest.run(), host.run()));
    let (guest, host): (Vec<_>, Vec<_>) =
        samples.map(|(guest, host)| (load.mib_per_second(guest), load.mib_per_second(host))).unzip();
    Comparison { load, guest: Samples::new(guest), host: Samples::new(host) }
}

/// A file that is there in whole: a hole would cost its first writer more than the others.
struct Disk {
    path: PathBuf,
    _folder: TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir_in(FOLDER).expect("/dev/shm can be written");
        let path = folder.path().join("disk");
        let content = vec![0x5a; usize::try_from(DISK_MIB * MIB).expect("128 MiB fit into an address space")];
        fs::write(&path, content).expect("/dev/shm has room for the disk");
        Self { path, _folder: folder }
    }
}

/// A guest that runs the load each time it is told.
struct GuestSide {
    vmm: Vmm,
    answer: String,
}

impl GuestSide {
    fn boot(load: &Load, disk: &Path, runs: usize) -> Self {
        let vmm = Vmm::start();
        vmm.machine(1, 64);
        vmm.boot_source(bare_metal(Entry::Linux64), None, &format!("echo {} ", load.command()).repeat(runs));
        let drive = json!({
            "drive_id": "disk", "path_on_host": disk, "is_root_device": false, "io_engine": load.engine,
        });
        vmm.grant("PUT", "/drives/disk", &drive);
        vmm.start_instance();
        let mut side = Self { vmm, answer: format!("guest: disk-{}", load.verb()) };
        side.wait_until_it_listens();
        side
    }

    fn wait_until_it_listens(&mut self) {
        self.vmm.wait_for_line("guest: echo");
    }

    fn run(&mut self) -> Duration {
        let started = Instant::now();
        self.vmm.type_text("quit\n");
        let line = self.vmm.wait_for_line(&self.answer);
        let took = started.elapsed();
        assert!(line.contains(" 0 failed requests"), "{line}");
        took
    }
}

/// The same requests, one after the other, by system calls. Its buffers are as many as the guest's, and as cold.
struct HostSide {
    load: Load,
    file: File,
    buffers: Vec<u8>,
}

impl HostSide {
    fn new(load: Load, disk: &Path) -> Self {
        let file = File::options().read(true).write(true).open(disk).expect("the disk was made");
        let bytes = usize::try_from((load.request_kib << 10) * load.in_flight).expect("a few MiB");
        Self { load, file, buffers: vec![0x5a; bytes] }
    }

    fn run(&mut self) -> Duration {
        let request_bytes = self.load.request_kib << 10;
        let offsets =
            (0..(self.load.mib * MIB) / request_bytes).map(|n| n * request_bytes % (DISK_MIB * MIB));
        let buffer_bytes = self.buffers.len() / usize::try_from(self.load.in_flight).expect("a few");
        let mut slot = 0;
        let started = Instant::now();
        for offset in offsets {
            let buffer = &mut self.buffers[slot..slot + buffer_bytes];
            let done = if self.load.write {
                self.file.write_all_at(buffer, offset)
            } else {
                self.file.read_exact_at(buffer, offset)
            };
            done.expect("the disk is as long as it was made");
            slot = (slot + buffer_bytes) % self.buffers.len();
        }
        started.elapsed()
    }
}
