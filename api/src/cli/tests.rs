//! What the command line accepts, and how it refuses.

use super::*;
use crate::types::{HugePages, LogLevel};
use clap::CommandFactory;

fn parse(words: &[&str]) -> Result<Invocation, Exit> {
    Invocation::parse(words.iter().map(OsString::from))
}

fn vmm(words: &[&str]) -> VmmArgs {
    match parse(words) {
        Ok(Invocation::Vmm(args)) => args,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn refusal(words: &[&str]) -> String {
    let exit = parse(words).unwrap_err();
    assert_eq!(exit.code, EXIT_ARGUMENTS, "{words:?}");
    exit.text
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn without_arguments_it_is_a_vmm_with_firecrackers_defaults() {
    let args = vmm(&["faultless"]);
    assert_eq!(args.api_sock, Path::new("/run/firecracker.socket"));
    assert_eq!(args.id, "anonymous-instance");
    assert_eq!(args.limits().payload_bytes_max, 51_200);
}

#[test]
fn firecrackers_flags_are_taken() {
    let args = vmm(&[
        "firecracker",
        "--api-sock=/tmp/a.sock",
        "--id",
        "vm-1",
        "--no-seccomp",
        "--start-time-us",
        "1",
        "--start-time-cpu-us",
        "2",
        "--parent-cpu-time-us",
        "3",
        "--config-file",
        "vm.json",
        "--no-api",
        "--log-path",
        "log",
        "--level",
        "DEBUG",
        "--module",
        "api",
        "--show-level",
        "--show-log-origin",
        "--metrics-path",
        "metrics",
        "--boot-timer",
        "--http-api-max-payload-size",
        "1000",
        "--mmds-size-limit",
        "1000",
    ]);
    assert_eq!((args.api_sock.to_str(), args.id.as_str()), (Some("/tmp/a.sock"), "vm-1"));
    assert!(args.no_seccomp && args.no_api && args.show_level && args.show_log_origin && args.boot_timer);
    assert_eq!(
        (args.start_time_us, args.start_time_cpu_us, args.parent_cpu_time_us),
        (Some(1), Some(2), Some(3))
    );
    assert_eq!(args.level, Some(LogLevel::Debug));
    assert_eq!(args.limits().payload_bytes_max, 1000);
}

#[test]
fn flags_without_support_are_refused_by_name() {
    for words in [&["--metadata", "m.json"][..], &["--enable-pci"], &["--seccomp-filter", "filter"]] {
        let words = [&["firecracker"], words].concat();
        let text = refusal(&words);
        assert!(text.contains(words[1]) && text.contains("not supported yet"), "{text}");
    }
}

#[test]
fn mistakes_are_refused_with_firecrackers_status() {
    assert!(refusal(&["faultless", "--nonsense"]).contains("--nonsense"));
    assert!(refusal(&["faultless", "--no-api"]).contains("--config-file"));
    assert!(refusal(&["faultless", "--id", "a_b"]).contains("invalid char (_) at position 1"));
    assert!(refusal(&["faultless", "--level", "loud"]).contains("use Off, Error"));
    assert!(refusal(&["faultless", "--http-api-max-payload-size", "0"]).contains("not in 1.."));
    assert!(
        refusal(&["faultless", "--api-sock", "a", "--api-sock", "b"])
            .contains("cannot be used multiple times")
    );
    assert!(refusal(&["faultless", "--id", "a", "doctor"]).contains("cannot be used"));
    assert!(refusal(&["faultless", "run"]).contains("--kernel"));
    assert!(refusal(&["faultless", "run", "--kernel", "k", "--cpus", "33"]).contains("33 is not in 1..=32"));
    assert!(refusal(&["faultless", "run", "--kernel", "k", "--memory", "0"]).contains("needs memory"));
    assert!(refusal(&["faultless", "run", "--kernel", "k", "--disk", ":ro"]).contains("needs a path"));
    assert!(refusal(&["faultless", "ctl"]).contains("Usage"));
    assert!(refusal(&["faultless", "ctl", "entropy", "--ops", "1/2/3/4"]).contains("SIZE/MS"));
}

#[test]
fn a_machine_goes_on_in_one_line() {
    let Ok(Invocation::Run(args)) = parse(&["faultless", "run", "--snapshot", "state", "memory"]) else {
        panic!("it is not to be run")
    };
    assert_eq!((args.kernel, args.snapshot), (None, Some(vec!["state".to_owned(), "memory".to_owned()])));
    assert!(refusal(&["faultless", "run", "--snapshot", "state"]).contains("MEMORY"));
    assert!(
        refusal(&["faultless", "run", "--snapshot", "s", "m", "--kernel", "k"])
            .contains("cannot be used with")
    );
    assert!(
        refusal(&["faultless", "run", "--snapshot", "s", "m", "--cpus", "2"]).contains("cannot be used with")
    );
}

#[test]
fn a_machine_in_one_line() {
    let words = "faultless run --kernel k --initrd i --disk root.ext4 --disk data:ro --cpus 4 --memory 2G --entropy \
                 --cmdline quiet --huge-pages 2M";
    let Ok(Invocation::Run(args)) = parse(&words.split(' ').collect::<Vec<_>>()) else { panic!("{words}") };
    assert_eq!(
        (args.kernel.as_deref(), args.initrd.as_deref(), args.cmdline.as_deref()),
        (Some("k"), Some("i"), Some("quiet"))
    );
    assert_eq!((args.cpus, args.memory_mib, args.huge_pages), (4, 2048, HugePages::Hugetlb2M));
    assert!(args.entropy);
    let disk = |path: &str, is_read_only| DiskArg { path: path.to_owned(), is_read_only };
    assert_eq!(args.disks, [disk("root.ext4", false), disk("data", true)]);
}

#[test]
fn doctor_is_parsed() {
    assert_eq!(parse(&["faultless", "doctor", "--json"]), Ok(Invocation::Doctor(DoctorArgs { json: true })));
}

#[test]
fn the_version_is_what_the_name_promises() {
    let version = |program: &str| {
        let exit = parse(&[program, "--version"]).unwrap_err();
        assert_eq!(exit.code, 0);
        exit.text
    };
    assert_eq!(version("/usr/bin/firecracker"), "Firecracker v1.17.0\n\n");
    assert_eq!(version("./firecracker-v1.17.0-x86_64"), "Firecracker v1.17.0\n\n");
    assert_eq!(version("/opt/firecracker/faultless"), concat!("faultless ", env!("CARGO_PKG_VERSION"), "\n"));
    // As Kata Containers reads it: the second word, trimmed, without its v.
    let text = version("firecracker");
    let second = text.split(' ').nth(1).unwrap().trim();
    assert_eq!(second.trim_start_matches('v'), FIRECRACKER_VERSION);
}

#[test]
fn help_is_no_mistake_and_hides_what_is_not_supported() {
    let exit = parse(&["faultless", "--help"]).unwrap_err();
    assert_eq!(exit.code, 0);
    assert!(exit.text.contains("doctor") && exit.text.contains("--api-sock"));
    assert!(!exit.text.contains("--enable-pci"), "{}", exit.text);
}
