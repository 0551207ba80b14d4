//! `faultless run`: one machine, its console on this terminal, ending as the guest does.
//!
//! While the guest has the terminal, every key goes to it, but for the escape: Ctrl-A, then `x` ends the machine, and
//! Ctrl-A twice sends one to the guest.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::thread;

use api::Request;
use api::cli::RunArgs;
use api::types::{
    BootSource, Drive, Entropy, LogLevel, MachineConfig, MemBackend, MemBackendType, SnapshotLoad, VmConfig,
};

use crate::error::chain;
use crate::front::Front;
use crate::machine::devices::{Console, Options};
use crate::machine::driver::{Driver, Ending};
use crate::machine::message::Notifier;
use crate::process;
use crate::telemetry::log::Log;
use crate::terminal;

/// Ctrl-A.
const ESCAPE: u8 = 0x01;
/// The name the machine has in its log.
const INSTANCE_ID: &str = "run";
/// The command line of a guest whose user gave none: what a person at a terminal expects.
const COMMAND_LINE: &str = "console=ttyS0 reboot=t panic=-1";

/// Runs a machine until it ends.
#[must_use]
pub fn main(args: &RunArgs) -> ExitCode {
    match run(args) {
        Ok(ending) => {
            if let Some(cause) = ending.failure() {
                eprintln!("faultless: the microVM failed: {cause}");
            }
            ExitCode::from(process::exit_code(&ending))
        }
        Err(error) => {
            eprintln!("faultless: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &RunArgs) -> Result<Ending, Box<dyn std::error::Error>> {
    process::install_handlers()?;
    let log = Log::install(INSTANCE_ID, LogLevel::Warning, Box::new(io::stderr()))?;
    let (sender, inbox) = channel();
    let notifier = Notifier::new(sender);
    let _front = Front::start(&notifier)?;
    let console = if terminal::is_ours() {
        eprintln!("faultless: Ctrl-A x ends the microVM");
        Console::with_input(escaped_stdin(notifier.clone())?)
    } else {
        Console::standard()
    };
    let options = Options { console, boot_timer: false };
    let mut driver = Driver::new(INSTANCE_ID, inbox, notifier, options, log);
    match args.snapshot.as_deref() {
        Some([state, memory]) => driver.configure_with(load(state, memory))?,
        _ => driver.start_with(config(args))?,
    }
    Ok(driver.run())
}

/// Goes on from a snapshot, running.
fn load(state: &str, memory: &str) -> Request {
    let (backend_type, backend_path) = (MemBackendType::Lazy, memory.to_owned());
    Request::LoadSnapshot(Box::new(SnapshotLoad {
        snapshot_path: state.to_owned(),
        mem_backend: Some(MemBackend { backend_type, backend_path }),
        resume_vm: true,
        ..SnapshotLoad::default()
    }))
}

fn config(args: &RunArgs) -> VmConfig {
    // A user who names the root is taken at his word.
    let names_root = args
        .cmdline
        .as_deref()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .any(|word| word.starts_with("root="));
    let drives = args.disks.iter().enumerate().map(|(index, disk)| Drive {
        drive_id: format!("disk{index}"),
        is_root_device: index == 0 && !names_root,
        is_read_only: Some(disk.is_read_only),
        path_on_host: Some(disk.path.clone()),
        ..Drive::default()
    });
    VmConfig {
        drives: drives.collect(),
        boot_source: Some(BootSource {
            kernel_image_path: args.kernel.clone().unwrap_or_default(),
            initrd_path: args.initrd.clone(),
            boot_args: Some(args.cmdline.clone().unwrap_or_else(|| COMMAND_LINE.to_owned())),
        }),
        machine_config: Some(MachineConfig {
            vcpu_count: args.cpus,
            mem_size_mib: args.memory_mib,
            huge_pages: args.huge_pages,
            ..MachineConfig::default()
        }),
        entropy: args.entropy.then(Entropy::default),
        ..VmConfig::default()
    }
}

/// A socket that carries what is typed, without the escape. Its thread ends with the process, or with the input.
///
/// What a guest does not read is lost once the socket is full: the escape has to get through.
fn escaped_stdin(notifier: Notifier) -> io::Result<OwnedFd> {
    let (for_guest, guest) = UnixStream::pair()?;
    guest.set_nonblocking(true)?;
    thread::Builder::new().name("console".to_owned()).spawn(move || {
        if let Err(error) = pump(guest, &notifier) {
            tracing::debug!(%error, "the console's input has ended");
        }
    })?;
    Ok(for_guest.into())
}

fn pump(mut guest: UnixStream, notifier: &Notifier) -> io::Result<()> {
    let mut filter = EscapeFilter::default();
    let mut typed = [0; 256];
    loop {
        let count = io::stdin().read(&mut typed)?;
        if count == 0 {
            return Ok(());
        }
        let (text, quit) = filter.pass(&typed[..count]);
        if let Err(error) = guest.write_all(&text) {
            tracing::debug!(%error, "the guest does not take what is typed");
        }
        if quit {
            notifier.quit();
        }
    }
}

/// Finds the escape in what is typed, across reads.
#[derive(Debug, Default)]
struct EscapeFilter {
    escaped: bool,
}

impl EscapeFilter {
    /// What goes on to the guest, and whether the machine is to end.
    fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut text = Vec::with_capacity(typed.len() + 1);
        for &key in typed {
            match (std::mem::take(&mut self.escaped), key) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x' | b'X') => return (text, true),
                (true, ESCAPE) | (false, _) => text.push(key),
                // Not an escape after all: both keys were meant.
                (true, _) => text.extend([ESCAPE, key]),
            }
        }
        (text, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_ends_the_machine_and_can_be_typed() {
        let mut filter = EscapeFilter::default();
        assert_eq!(filter.pass(b"ls\r"), (b"ls\r".to_vec(), false));
        assert_eq!(filter.pass(b"a\x01"), (b"a".to_vec(), false));
        assert_eq!(filter.pass(b"\x01b"), (b"\x01b".to_vec(), false), "twice is once");
        assert_eq!(filter.pass(b"\x01c"), (b"\x01c".to_vec(), false), "another key passes with it");
        assert_eq!(filter.pass(b"d\x01x and more"), (b"d".to_vec(), true));
    }
}
