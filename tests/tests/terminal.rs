//! `faultless run` as a person sees it: on a terminal, with the guest's console both ways.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::process::Command;

use tests::guest::{Entry, bare_metal};
use tests::host::on_kvm_host;
use tests::vmm::{Terminal, Vmm, binary};

/// `faultless run` with the bare-metal guest on a terminal, and how that was set before.
fn run(commands: &str, more: &[&str]) -> (Vmm, Terminal) {
    let kernel = bare_metal(Entry::Linux64).to_str().unwrap();
    let arguments = ["run", "--kernel", kernel, "--memory", "64M", "--cmdline", commands];
    Vmm::start_on_terminal(&[&arguments[..], more].concat())
}

fn ended_as_it_began(vmm: &Vmm, terminal: &Terminal) {
    assert!(!terminal.is_raw(), "the terminal is still raw");
    vmm.left_nothing_behind();
}

#[test]
fn the_console_is_the_terminal_until_the_guest_powers_off() {
    on_kvm_host(|| {
        let (mut vmm, terminal) = run("hello echo exit", &[]);
        vmm.wait_for_line("guest: echo");
        assert!(terminal.is_raw());
        vmm.type_text("what is typed\r");
        vmm.wait_for_line("guest: echo what is typed");
        // Ctrl-C and Ctrl-D are the guest's.
        vmm.type_text("\x03\x04\r");
        vmm.wait_for_line("guest: echo \x03\x04");
        vmm.type_text("quit\r");
        assert_eq!(vmm.wait_for_exit().code(), Some(0), "{}", vmm.log());
        ended_as_it_began(&vmm, &terminal);
        assert!(vmm.log().contains("Ctrl-A x"), "nobody is told how to get out: {}", vmm.log());
    });
}

#[test]
fn ctrl_a_x_ends_a_guest_that_does_not() {
    on_kvm_host(|| {
        let (mut vmm, terminal) = run("spin", &[]);
        vmm.wait_for_line("guest: spinning");
        vmm.type_text("x\x01");
        vmm.type_text("x");
        assert_eq!(vmm.wait_for_exit().code(), Some(0), "{}", vmm.log());
        ended_as_it_began(&vmm, &terminal);
    });
}

#[test]
fn ctrl_a_twice_is_one_for_the_guest() {
    on_kvm_host(|| {
        let (mut vmm, _terminal) = run("echo exit", &[]);
        vmm.wait_for_line("guest: echo");
        vmm.type_text("a\x01\x01b\r");
        assert_eq!(vmm.wait_for_line("guest: echo"), "guest: echo a\x01b");
        vmm.type_text("quit\r");
        assert!(vmm.wait_for_exit().success());
    });
}

#[test]
fn the_terminal_comes_back_however_it_ends() {
    on_kvm_host(|| {
        let (mut vmm, terminal) = run("hello crash", &[]);
        assert_eq!(vmm.wait_for_exit().code(), Some(0), "a triple fault is a reboot: {}", vmm.log());
        ended_as_it_began(&vmm, &terminal);
        for signal in ["TERM", "INT", "HUP"] {
            let (mut vmm, terminal) = run("spin", &[]);
            vmm.wait_for_line("guest: spinning");
            vmm.signal(signal);
            assert_eq!(vmm.wait_for_exit().code(), Some(0), "SIG{signal}: {}", vmm.log());
            ended_as_it_began(&vmm, &terminal);
        }
        let (mut vmm, terminal) = run("hello", &["--disk", "/no/such/disk"]);
        assert_eq!(vmm.wait_for_exit().code(), Some(1));
        assert!(vmm.log().contains("/no/such/disk"), "{}", vmm.log());
        ended_as_it_began(&vmm, &terminal);
    });
}

#[test]
fn settings_of_the_terminal_are_as_they_were() {
    on_kvm_host(|| {
        let (mut vmm, terminal) = run("echo exit", &[]);
        vmm.wait_for_line("guest: echo");
        let raw = terminal.settings();
        vmm.type_text("quit\r");
        vmm.wait_for_exit();
        let (mut again, fresh) = run("exit", &[]);
        again.wait_for_exit();
        assert_eq!(terminal.settings(), fresh.settings());
        assert_ne!(terminal.settings(), raw);
    });
}

#[test]
fn without_a_terminal_pipes_are_the_console() {
    on_kvm_host(|| {
        let kernel = bare_metal(Entry::Pvh).to_str().unwrap();
        let mut vmm = Vmm::start_command(&["run", "--kernel", kernel, "--cmdline", "echo exit"]);
        vmm.wait_for_line("guest: echo");
        // Without a terminal there is no escape: Ctrl-A is a byte like others.
        vmm.type_text("\x01x\n");
        assert_eq!(vmm.wait_for_line("guest: echo"), "guest: echo \x01x");
        vmm.type_text("quit\n");
        vmm.ends_cleanly();
    });
}

#[test]
fn a_console_without_input_runs_to_its_end() {
    on_kvm_host(|| {
        let kernel = bare_metal(Entry::Linux64);
        let output = Command::new(binary())
            .args(["run", "--memory", "64M", "--cmdline", "hello exit", "--kernel"])
            .arg(kernel)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("guest: hello"), "{output:?}");
    });
}
