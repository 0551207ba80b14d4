//! What `make demo` shows: a stock Debian kernel, booted over the REST API from a cold start to its power-off.
//!
//! Where this machine's KVM cannot run Linux, the same program runs again on a KVM host in software, and says so.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tests::guest::{DISK_BYTES, LinuxGuest, QUIET_CONSOLE};
use tests::host::{self, Place};
use tests::lab::{Lab, LabCommand};
use tests::vmm::{Vmm, binary};

const SERIES: &str = "6.12";
const CPUS: u32 = 2;
const MEMORY_MIB: u32 = 256;
const CHECKS: &str = "hello,nproc,memory,clock,disk,entropy,echo,poweroff";

fn main() -> ExitCode {
    // Made here, where it is kept: the lab forgets.
    let guest = match LinuxGuest::prepare(SERIES) {
        Ok(guest) => guest,
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    match host::place_for_linux() {
        Place::Own => {
            show(&guest);
            ExitCode::SUCCESS
        }
        Place::Lab => rerun_in_lab(),
    }
}

fn rerun_in_lab() -> ExitCode {
    let lab = Lab::default();
    println!("This machine's own KVM cannot run Linux, so the demo runs in the {}:", lab.describe());
    println!(
        "QEMU emulates a whole KVM host, so every time below is some tens of times what real hardware takes.\n"
    );
    let program = std::env::current_exe().expect("a running program has a path");
    match lab.run(&LabCommand::new(program), &mut io::stdout()) {
        Ok(exit) if exit.status == 0 => ExitCode::SUCCESS,
        Ok(exit) => {
            eprintln!("demo: it ended with status {} there", exit.status);
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(guest: &LinuxGuest) {
    println!("On {}: {}\n", host::describe(), binary().display());
    let mut steps = Vec::new();
    let mut vmm = Vmm::start();
    steps.push(("process start to API ready", vmm.api_ready_after()));

    let configuring = Instant::now();
    let disk = configure(&vmm, guest);
    steps.push(("configuration, four requests", configuring.elapsed()));

    let starting = Instant::now();
    println!("PUT /actions        InstanceStart");
    vmm.start_instance();
    steps.push(("InstanceStart answered", starting.elapsed()));
    vmm.wait_for_line("guest: init");
    steps.push(("start to init", starting.elapsed()));
    vmm.wait_for_line("guest: hello");
    steps.push(("start to root disk", starting.elapsed()));

    vmm.wait_for_line("guest: echo");
    vmm.type_text("good day, guest\n");
    let echoed = vmm.wait_for_line("guest: echo");
    vmm.type_text("quit\n");
    vmm.ends_cleanly();
    steps.push(("start to power-off", starting.elapsed()));

    print_console(&vmm.console());
    check(&vmm.console(), &echoed, &disk);
    print_table(&steps);
}

/// Makes the microVM, request by request.
fn configure(vmm: &Vmm, guest: &LinuxGuest) -> PathBuf {
    let disk = vmm.folder().join("root.ext4");
    guest.copy_disk(&disk).expect("a temporary folder has room for the root disk");
    println!("PUT /machine-config {CPUS} vCPUs, {MEMORY_MIB} MiB");
    vmm.machine(CPUS, MEMORY_MIB);
    println!("PUT /boot-source    Linux {}, Debian's own image", guest.release);
    vmm.boot_source(&guest.image, Some(&guest.initrd), &format!("{QUIET_CONSOLE} guest={CHECKS}"));
    println!("PUT /drives/rootfs  ext4, {} MiB", DISK_BYTES >> 20);
    vmm.drive("rootfs", &disk, true, false);
    println!("PUT /entropy");
    vmm.entropy();
    disk
}

fn print_console(console: &str) {
    println!("\nThe guest's console:\n");
    console.lines().for_each(|line| println!("  | {}", line.trim_end()));
}

/// Ends the program if the guest did not answer as it should.
fn check(console: &str, echoed: &str, disk: &Path) {
    for expected in ["hello from Linux", &format!("nproc={CPUS}"), "disk ok", "entropy ok", "poweroff"] {
        assert!(console.contains(&format!("guest: {expected}")), "the guest did not say {expected:?}");
    }
    assert!(!console.contains("guest: FAIL"), "a check failed in the guest");
    assert_eq!(echoed, "guest: echo good day, guest");
    assert!(disk.exists());
    println!(
        "\nEvery answer is as it should be: processors, root disk, entropy, both ways of the console, power-off."
    );
}

fn print_table(steps: &[(&str, Duration)]) {
    println!("\n{:<32} {:>12}", "step", "ms");
    for (step, took) in steps {
        println!("{step:<32} {:>12.1}", took.as_secs_f64() * 1e3);
    }
}
