//! A guest learns that it is a clone. What a snapshot's restoration will call is called here on a VM in this process,
//! since no request of the API reaches it. Unsafe because a handler for the signal that takes a vCPU out of its guest is
//! the process's business, and this process is not the VMM's.
#![expect(unsafe_code, reason = "a signal's handler is set")]
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs;
use std::io::{PipeWriter, Write, pipe};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::{Duration, Instant};

use api::types::{BootSource, MachineConfig, Serial};
use tempfile::TempDir;
use tests::guest::{Entry, LinuxGuest, bare_metal};
use tests::host::{on_kvm_host, on_linux_host};
use tests::vmm::WAIT;
use vmm::machine::build::build;
use vmm::machine::devices::{Console, Options};
use vmm::machine::memory::MemoryPlan;
use vmm::machine::message::Notifier;
use vmm::machine::resources::Resources;
use vmm::machine::vm::Vm;

/// A VM of this process, running, and the file that its console goes to.
struct Running {
    vm: Vm,
    output: PathBuf,
    /// What is typed.
    input: PipeWriter,
    _folder: TempDir,
}

impl Running {
    fn start(kernel: &Path, initrd: Option<&Path>, command_line: &str) -> Self {
        take_kicks();
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("console");
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut resources = Resources::default();
        let machine = MachineConfig { vcpu_count: 1, mem_size_mib: 256, ..MachineConfig::default() };
        resources.set_machine(machine).unwrap();
        let source = BootSource {
            kernel_image_path: text(kernel),
            initrd_path: initrd.map(text),
            boot_args: Some(command_line.to_owned()),
        };
        resources.set_boot_source(source).unwrap();
        resources.serial = Some(Serial { serial_out_path: Some(text(&output)), rate_limiter: None });
        let (typed, input) = pipe().unwrap();
        let console = Console::with_input(typed.into());
        let options = Options { console, boot_timer: false };
        let notifier = Notifier::new(channel().0);
        let mut vm = build(&mut resources, &mut MemoryPlan::Fresh, &options, &notifier).unwrap();
        vm.resume().unwrap();
        Self { vm, output, input, _folder: folder }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// Waits for the line number `count`, from 1 up, that contains `text`, and gives it.
    fn line(&self, text: &str, count: usize) -> String {
        let start = Instant::now();
        loop {
            let console = self.console();
            let whole = console.rsplit_once('\n').map_or("", |(lines, _)| lines);
            if let Some(line) = whole.lines().filter(|line| line.contains(text)).nth(count - 1) {
                return line.trim_end().to_owned();
            }
            assert!(start.elapsed() < WAIT, "no {count}th line with {text:?} in\n{console}");
            sleep(Duration::from_millis(5));
        }
    }

    /// The ID, as the bare-metal guest says it.
    fn id(&mut self) -> String {
        format!("{:032x}", u128::from_le_bytes(self.vm.devices.generation().state().id))
    }
}

extern "C" fn interrupt(_: libc::c_int) {}

/// Lets a kick interrupt a vCPU rather than end this process.
fn take_kicks() {
    let handler = interrupt as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler does nothing, which it may do at any time.
    let before = unsafe { libc::signal(libc::SIGRTMIN(), handler) };
    assert_ne!(before, libc::SIG_ERR);
}

/// By both entries, as the tables that lead there are found in two ways.
#[test]
fn a_guest_finds_its_generation_and_sees_it_change() {
    on_kvm_host(|| {
        for entry in [Entry::Linux64, Entry::Pvh] {
            let mut running = Running::start(bare_metal(entry), None, "generation 4 spin");
            let place = running.line("guest: generation at", 1);
            assert_eq!(place, "guest: generation at 0xdf010, clock at 0xde000, flags 0x300");
            let expect = |running: &mut Running, count: usize, counters: &str| {
                let expected = format!("guest: generation {}, {counters}", running.id());
                assert_eq!(running.line(", sequence ", count), expected);
                running.id()
            };
            let first = expect(&mut running, 1, "sequence 0, marker 0, counter 0");
            running.vm.devices.generation().renew().unwrap();
            let second = expect(&mut running, 2, "sequence 2, marker 1, counter 1");
            running.vm.devices.generation().moved().unwrap();
            let third = expect(&mut running, 3, "sequence 4, marker 2, counter 1");
            running.vm.pause().unwrap();
            running.vm.devices.generation().renew().unwrap();
            running.vm.resume().unwrap();
            let fourth = expect(&mut running, 4, "sequence 6, marker 3, counter 2");
            assert_eq!(second, third);
            assert!(first != second && second != fourth && first != fourth);
        }
    });
}

/// Debian's cloud kernel 6.12 has vmgenid built in. It reseeds once for each new ID, and not for an interrupt that brings
/// none.
#[test]
fn debian_6_12_reseeds_when_its_id_is_new() {
    const RESEEDED: &str = "crng reseeded due to virtual machine fork";
    on_linux_host(|| {
        let guest = LinuxGuest::prepare("6.12").unwrap();
        let arguments = "console=ttyS0 panic=-1 reboot=t loglevel=6 guest=generation,tick";
        let mut running = Running::start(&guest.elf, Some(&guest.initrd), arguments);
        assert_eq!(running.line("guest: generation", 1), "guest: generation driver=vmgenid events=0");
        running.line("guest: tick", 1);
        running.vm.devices.generation().renew().unwrap();
        running.line(RESEEDED, 1);
        running.vm.devices.generation().moved().unwrap();
        // While paused, as when a snapshot is restored.
        running.vm.pause().unwrap();
        running.vm.devices.generation().renew().unwrap();
        running.vm.resume().unwrap();
        running.line(RESEEDED, 2);
        assert_eq!(running.console().matches(RESEEDED).count(), 2, "{}", running.console());
        running.vm.stop().unwrap();
    });
}

/// Debian's cloud kernel 6.1 has no driver for either. It takes the event all the same, and runs its method.
#[test]
fn debian_6_1_takes_the_event() {
    on_linux_host(|| {
        let guest = LinuxGuest::prepare("6.1").unwrap();
        let arguments = "console=ttyS0 panic=-1 reboot=t loglevel=6 guest=generation,echo,generation,idle";
        let mut running = Running::start(&guest.elf, Some(&guest.initrd), arguments);
        assert_eq!(running.line("guest: generation", 1), "guest: generation driver= events=0");
        running.line("guest: echo", 1);
        running.vm.devices.generation().renew().unwrap();
        // The host delivers the event beside this thread, and by this answer has done so.
        running.input.write_all(b"told\n").unwrap();
        running.line("guest: echo told", 1);
        running.input.write_all(b"quit\n").unwrap();
        assert_eq!(running.line("guest: generation", 2), "guest: generation driver= events=1");
        assert!(!running.console().contains("method execution failed"), "{}", running.console());
        running.vm.stop().unwrap();
    });
}
