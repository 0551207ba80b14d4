//! The KVM host lab itself: what it runs, what comes back, and what it leaves behind.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::io;
use std::time::Duration;

use tests::lab::{Lab, LabCommand, LabError, LabExit};

/// Runs a shell script in the lab, and gives what it printed.
fn run(lab: &Lab, script: &str) -> (LabExit, String) {
    let mut printed = Vec::new();
    let exit = lab.run(&LabCommand::new("/bin/sh").args(["-c", script]), &mut printed);
    (exit.unwrap_or_else(|error| panic!("{error}")), String::from_utf8(printed).unwrap())
}

#[test]
fn each_kernel_has_kvm_and_userfaultfd() {
    for series in ["6.1", "6.12"] {
        let lab = Lab::default().kernel_series(series);
        let script =
            "uname -r; test -w /dev/kvm && test -d /sys/module/kvm_amd && test -e /dev/userfaultfd; exit $?";
        let (exit, printed) = run(&lab, script);
        assert_eq!(exit.status, 0, "{series}: {printed}");
        assert!(printed.starts_with(&format!("{series}.")), "{printed}");
    }
}

#[test]
fn status_and_output_come_back_whole() {
    let (exit, printed) = run(&Lab::default(), "seq 100000; echo status 0 >&2; exit 42");
    assert_eq!(exit.status, 42);
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines.len(), 100_001);
    assert_eq!(lines[99_999..], ["100000", "status 0"]);
}

#[test]
fn this_machines_files_are_there_and_stay_as_they_are() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, "before").unwrap();
    let name = path.display();
    let (exit, printed) = run(
        &Lab::default(),
        &format!("cat {name} && echo after > {name} && cat {name} && echo kept > /run/lab/kept"),
    );
    assert_eq!((exit.status, printed.as_str()), (0, "beforeafter\n"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
    assert_eq!(std::fs::read_to_string(exit.exchange.path().join("kept")).unwrap(), "kept\n");
}

#[test]
fn a_command_without_end_is_ended() {
    let lab = Lab::default().timeout(Duration::from_secs(8));
    let result = lab.run(&LabCommand::new("/bin/sleep").args(["1000"]), &mut io::sink());
    assert!(matches!(result, Err(LabError::Timeout { .. })), "{result:?}");
}

#[test]
fn a_host_that_dies_under_its_command_is_no_success_and_not_tried_again() {
    let mut printed = Vec::new();
    let result = Lab::default().run(
        &LabCommand::new("/bin/sh").args(["-c", "echo begun; echo c > /proc/sysrq-trigger; sleep 60"]),
        &mut printed,
    );
    assert!(matches!(&result, Err(LabError::Died { .. })), "{result:?}");
    assert_eq!(String::from_utf8(printed).unwrap(), "begun\n");
}

#[test]
fn a_host_that_dies_before_its_command_is_tried_again_but_not_for_ever() {
    let mut printed = Vec::new();
    // Without an init the kernel panics as soon as it would start it.
    let lab = Lab::default().kernel_arguments("rdinit=/no/such/init");
    let result = lab.run(&LabCommand::new("/bin/echo").args(["reached"]), &mut printed);
    assert!(matches!(&result, Err(LabError::Stillborn { .. })), "{result:?}");
    let printed = String::from_utf8(printed).unwrap();
    let again: Vec<_> = printed.lines().filter(|line| line.starts_with("lab: the host died")).collect();
    assert_eq!(again.len(), 2, "{printed}");
    assert!(again[0].contains("(2 of 3)") && again[1].contains("(3 of 3)"), "{printed}");
    assert!(printed.contains("Kernel panic"), "{printed}");
}
