//! A KVM host in software: QEMU boots a stock Debian kernel with KVM and runs one command on it.
//!
//! For machines whose own KVM is missing, or cannot run stock Linux. QEMU's TCG emulates the whole host, SVM and nested
//! paging included, so what runs there is KVM as real users have it, only slower.
//!
//! ```text
//!   this machine                       │ the lab (one QEMU)
//!   / ──────────── 9p, read-only ──────┼─▶ lower ─┐
//!                            tmpfs ────┼─▶ upper ─┴─▶ / of the command: same files, same paths, writes are forgotten
//!   exchange folder ─────── 9p ────────┼─▶ /run/lab   the command in; its output, as it comes, and its status out
//!   exchange/console.log ◀── serial ───┼── what the kernel says
//! ```
//!
//! # Invariants
//!
//! - A host that dies before the command has begun is booted again; afterwards the command may have done something,
//!   so its death is an error. An emulated processor now and then trips over its own clock.
//! - The command's status is a file that appears whole or not at all: no output can be taken for it.
//! - Nothing on this machine changes but the exchange folder.
//! - QEMU ends with the thread that waits for it, or when its time is over.

mod boot_image;
mod command;
mod qemu;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use thiserror::Error;

use crate::cache::{self, CacheError};
use crate::kernel::{Arch, Kernel, KernelError};
pub use command::LabCommand;
use qemu::{Boot, Qemu};

/// The folder, in the lab, that the command shares with the harness.
pub const EXCHANGE: &str = "/run/lab";
/// Set in the lab, to what it is.
pub const LAB_VARIABLE: &str = "FAULTLESS_LAB";
/// Left in the exchange folder by the lab's init, just before the command.
const BEGUN: &str = "begun";
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How often the host is booted for one command.
const BOOTS_MAX: u32 = 3;

/// Why a command did not run to its end in the lab.
#[derive(Debug, Error)]
pub enum LabError {
    /// There is no kernel for the lab.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A program or file that the lab needs is not there.
    #[error("the lab needs {path}: {source}; `make setup` installs what is missing")]
    Missing {
        /// What is needed.
        path: PathBuf,
        /// Why it cannot be used.
        source: io::Error,
    },
    /// The time was over before the command ended.
    #[error("the command did not end within {timeout:?}, so the lab was ended; its console says:\n{console}")]
    Timeout {
        /// How long it was given.
        timeout: Duration,
        /// The last lines of QEMU's and the kernel's messages.
        console: String,
    },
    /// QEMU ended, and left no status of the command.
    #[error("the lab ended before the command did; its console says:\n{console}")]
    Died {
        /// The last lines of QEMU's and the kernel's messages.
        console: String,
    },
    /// QEMU ended before the command began, however often the host was booted.
    #[error("the lab ended before the command began, {BOOTS_MAX} times; its console says:\n{console}")]
    Stillborn {
        /// The last lines of QEMU's and the kernel's messages.
        console: String,
    },
}

/// A KVM host to be booted.
#[derive(Clone, Debug)]
pub struct Lab {
    arch: Arch,
    kernel_series: String,
    memory_mib: u32,
    cpus: u32,
    timeout: Duration,
    kernel_arguments: String,
}

/// What came of a command.
#[derive(Debug)]
pub struct LabExit {
    /// Its exit status; 128 and the signal's number if a signal ended it.
    pub status: i32,
    /// From QEMU's start to its end.
    pub elapsed: Duration,
    /// The folder that the command saw as `/run/lab`, with what it left there.
    pub exchange: TempDir,
}

/// How many processors a host has. With several, QEMU lets one go on in code that another has just patched, and the
/// kernel patches its own (static branches): it dies of an invalid opcode now and then.
const DEFAULT_CPUS: u32 = 1;

impl Default for Lab {
    fn default() -> Self {
        Self {
            arch: Arch::HOST,
            kernel_series: "6.12".to_owned(),
            memory_mib: 4096,
            cpus: DEFAULT_CPUS,
            timeout: Duration::from_secs(300),
            kernel_arguments: String::new(),
        }
    }
}

impl Lab {
    /// Boots the newest Debian kernel of this series: `6.12`, unless told otherwise, or `6.1`.
    pub fn kernel_series(mut self, series: &str) -> Self {
        series.clone_into(&mut self.kernel_series);
        self
    }

    /// Gives the host so much RAM: 4 GiB, unless told otherwise.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Gives the host so many processors: one, unless told otherwise.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Ends the lab after so long: five minutes, unless told otherwise.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Adds to the command line of the host's kernel.
    pub fn kernel_arguments(mut self, arguments: &str) -> Self {
        arguments.clone_into(&mut self.kernel_arguments);
        self
    }

    /// What the lab is, for people.
    pub fn describe(&self) -> String {
        format!("KVM host lab ({}, Debian's Linux {})", self.arch.name(), self.kernel_series)
    }

    /// Makes what a boot needs, so that [`run`](Self::run) only boots.
    pub fn prepare(&self) -> Result<(), LabError> {
        self.boot_files().map(drop)
    }

    /// Runs `command` on a freshly booted host; what it prints, to stdout and stderr, goes to `output` as it comes.
    ///
    /// Waits for a place first: there are as many labs at a time as processors, over all processes.
    pub fn run(&self, command: &LabCommand, output: &mut dyn Write) -> Result<LabExit, LabError> {
        let files = self.boot_files()?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let _place = cache::take_slot("lab", processors)?;
        let mut boots = 1;
        loop {
            match self.boot(&files, command, output) {
                Err(LabError::Stillborn { console }) if boots < BOOTS_MAX => {
                    boots += 1;
                    // Who cannot be told of it is told of the command's end, too.
                    let _ = writeln!(
                        output,
                        "lab: the host died before the command began, and is booted again ({boots} of {BOOTS_MAX}); its \
                         console says:\n{console}"
                    );
                }
                result => return result,
            }
        }
    }

    /// Boots the host once for `command`.
    fn boot(
        &self,
        (kernel, image): &(PathBuf, PathBuf),
        command: &LabCommand,
        output: &mut dyn Write,
    ) -> Result<LabExit, LabError> {
        let exchange = tempfile::Builder::new()
            .prefix("faultless-lab-")
            .tempdir()
            .map_err(|source| LabError::Missing { path: std::env::temp_dir(), source })?;
        let script = exchange.path().join("command");
        fs::write(&script, command.script(&self.describe()))
            .map_err(|source| LabError::Missing { path: script, source })?;
        let start = Instant::now();
        let mut qemu = Qemu::start(&Boot {
            arch: self.arch,
            kernel,
            image,
            kernel_arguments: &self.kernel_arguments,
            exchange: exchange.path(),
            memory_mib: self.memory_mib,
            cpus: self.cpus,
        })?;
        self.wait(&mut qemu, exchange.path(), start, output)?;
        let console = || console(exchange.path());
        match read_status(exchange.path()) {
            Some(status) => Ok(LabExit { status, elapsed: start.elapsed(), exchange }),
            None if exchange.path().join(BEGUN).exists() => Err(LabError::Died { console: console() }),
            None => Err(LabError::Stillborn { console: console() }),
        }
    }

    fn boot_files(&self) -> Result<(PathBuf, PathBuf), LabError> {
        let kernel = Kernel::host(self.arch, &self.kernel_series)?;
        let image = boot_image::build(&kernel, self.arch)?;
        let kernel = match self.arch {
            Arch::X86_64 => kernel.elf()?, // Entered by PVH, it spares the emulated processor the unpacking.
            Arch::Aarch64 => kernel.image(),
        };
        Ok((kernel, image))
    }

    /// Waits for QEMU's end, and passes on what the command prints until then.
    fn wait(
        &self,
        qemu: &mut Qemu,
        exchange: &Path,
        start: Instant,
        output: &mut dyn Write,
    ) -> Result<(), LabError> {
        let path = exchange.join("output");
        let failed = |source| LabError::Missing { path: path.clone(), source };
        let mut printed = File::options().create(true).append(true).read(true).open(&path).map_err(failed)?;
        loop {
            let has_ended = qemu.has_ended().map_err(failed)?;
            io::copy(&mut printed, output).and_then(|_| output.flush()).map_err(failed)?;
            if has_ended {
                return Ok(());
            }
            if start.elapsed() > self.timeout {
                return Err(LabError::Timeout { timeout: self.timeout, console: console(exchange) });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

fn read_status(exchange: &Path) -> Option<i32> {
    fs::read_to_string(exchange.join("status")).ok()?.trim().parse().ok()
}

/// The last lines that QEMU and the lab's kernel wrote.
fn console(exchange: &Path) -> String {
    const LINES: usize = 25;
    let texts = ["qemu.log", "console.log"]
        .map(|name| String::from_utf8_lossy(&fs::read(exchange.join(name)).unwrap_or_default()).into_owned());
    let lines: Vec<_> = texts.iter().flat_map(|text| text.lines()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
