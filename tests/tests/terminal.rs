//! `faultless run` as a person sees it: on a terminal, with the guest's console both ways.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::time::Instant;

use tests::guest::{Entry, bare_metal};
use tests::host::on_kvm_host;
use tests::vmm::{Launch, Terminal, Vmm, WAIT, binary};

/// `faultless run` with the bare-metal guest on a terminal, and how that was set before.
fn run(commands: &str, more: &[&str]) -> (Vmm, Terminal) {
    let kernel = bare_metal(Entry::Linux64).to_str().unwrap();
    let arguments = ["run", "--kernel", kernel, "--cmdline", commands];
    Launch::new(&[&arguments[..], more].concat()).start_on_terminal()
}

fn ended_as_it_began(vmm: &Vmm, terminal: &Terminal) {
    assert_eq!(terminal.settings(), terminal.first_settings());
    vmm.left_nothing_behind();
}

#[test]
fn the_console_is_the_terminal_until_the_guest_powers_off() {
    on_kvm_host(|| {
        let (mut vmm, terminal) = run("hello echo exit", &[]);
        vmm.wait_for_line("guest: echo");
        terminal.wait_until_raw();
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
        terminal.wait_until_raw();
        vmm.type_text("x\x01");
        vmm.type_text("x");
        assert_eq!(vmm.wait_for_exit().code(), Some(0), "{}", vmm.log());
        ended_as_it_began(&vmm, &terminal);
    });
}

#[test]
fn ctrl_a_twice_is_one_for_the_guest() {
    on_kvm_host(|| {
        let (mut vmm, terminal) = run("echo exit", &[]);
        vmm.wait_for_line("guest: echo");
        terminal.wait_until_raw();
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
            terminal.wait_until_raw();
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
fn the_terminal_comes_back_from_a_fatal_signal_too() {
    on_kvm_host(|| {
        for (signal, code) in [("SEGV", 150), ("BUS", 149), ("ABRT", 1), ("QUIT", 1)] {
            let (mut vmm, terminal) = run("spin", &[]);
            terminal.wait_until_raw();
            vmm.signal(signal);
            assert_eq!(vmm.wait_for_exit().code(), Some(code), "SIG{signal}: {}", vmm.log());
            assert!(vmm.log().contains(&format!("SIG{signal}")), "{}", vmm.log());
            assert_eq!(terminal.settings(), terminal.first_settings(), "SIG{signal}");
        }
    });
}

#[test]
fn a_signal_before_the_guest_runs_leaves_the_terminal_alone() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        // Long to load, and nothing on the disk.
        let initrd = folder.path().join("initrd");
        File::create(&initrd).unwrap().set_len(256 << 20).unwrap();
        let (mut vmm, terminal) = run("spin", &["--memory", "512M", "--initrd", initrd.to_str().unwrap()]);
        let deadline = Instant::now() + WAIT;
        while !vmm.log().contains("Ctrl-A x") {
            assert!(Instant::now() < deadline, "it says nothing");
        }
        vmm.signal("TERM");
        assert_eq!(vmm.wait_for_exit().code(), Some(0), "{}", vmm.log());
        assert_eq!(terminal.settings(), terminal.first_settings());
    });
}

#[test]
fn what_a_guest_does_not_read_does_not_keep_the_escape_away() {
    on_kvm_host(|| {
        let (mut vmm, terminal) = run("spin", &[]);
        terminal.wait_until_raw();
        let mut keyboard = terminal.keyboard();
        // By a thread of its own: should nobody read, it would wait for ever.
        std::thread::spawn(move || {
            let pasted = [&[b'a'; 150_000][..], b"\r\x01x"].concat();
            // An error says that the process has ended.
            let _ = keyboard.write_all(&pasted);
        });
        assert_eq!(vmm.wait_for_exit().code(), Some(0), "{}", vmm.log());
        ended_as_it_began(&vmm, &terminal);
    });
}

#[test]
fn a_vmm_takes_the_terminal_when_its_guest_runs() {
    on_kvm_host(|| {
        let (mut vmm, terminal) = Launch::new(&[]).with_api().with_log().start_on_terminal();
        vmm.wait_for_api();
        vmm.machine(1, 64);
        vmm.boot_source(bare_metal(Entry::Linux64), None, "echo exit");
        let before_start = terminal.settings();
        assert_eq!(
            before_start,
            terminal.first_settings(),
            "until a guest runs, Ctrl-C has to end the process"
        );
        vmm.start_instance();
        assert!(terminal.is_raw());
        vmm.wait_for_line("guest: echo");
        vmm.type_text("quit\r");
        vmm.ends_cleanly();
        assert_eq!(terminal.settings(), terminal.first_settings());
    });
}

#[test]
fn ctrl_c_ends_a_vmm_without_a_guest() {
    on_kvm_host(|| {
        let (mut vmm, _terminal) = Launch::new(&[]).with_api().with_log().start_on_terminal();
        vmm.wait_for_api();
        vmm.type_text("\x03");
        vmm.ends_cleanly();
    });
}

/// Runs what follows as a background job, says which process it is, and ends as it does.
const IN_BACKGROUND: [&str; 5] =
    ["sh", "-m", "-c", "setpriv --pdeathsig KILL \"$@\" & echo \"job $!\"; wait $!", "sh"];

#[test]
fn a_vmm_in_the_background_is_not_stopped_by_its_terminal() {
    on_kvm_host(|| {
        let launch = Launch::new(&[]).with_api().with_log().by(&IN_BACKGROUND);
        let (mut vmm, terminal) = launch.start_on_terminal();
        let job = vmm.wait_for_line("job ").replace("job ", "");
        vmm.wait_for_api();
        vmm.machine(1, 64);
        vmm.boot_source(bare_metal(Entry::Linux64), None, "tick");
        vmm.start_instance();
        vmm.wait_for_line("guest: tick 3");
        vmm.type_text("a line for whoever is in the foreground\n");
        vmm.wait_for_line("guest: tick");
        vmm.wait_for_line("guest: tick");
        assert_eq!(
            (vmm.state().as_str(), terminal.settings()),
            ("Running", terminal.first_settings().to_owned())
        );
        assert!(Command::new("kill").arg(job).status().unwrap().success());
        vmm.ends_cleanly();
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
