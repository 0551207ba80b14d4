//! Pages that do not come: the guest stands still, the state says why, and the process ends when it is told to.

use super::*;

/// The number of a page in the midst of what the guest walks over, and where the guest has it.
const PAGE: u64 = 5000;
const ADDRESS: &str = "0x1388000";
/// What a process ends with whose guest's memory has failed.
const EXIT_MEMORY: i32 = 149;

/// Boots a guest that will miss a page for good: it stands still, the state says why, and nothing but the end is left.
fn fails_loudly(words: &str, commands: &str, said: &[&str]) {
    let mut vmm = booted(words, &format!("hello {commands} hello exit"));
    vmm.wait_for_line("guest: hello");
    let failure = wait_for_failure(&mut vmm);
    println!("{words}: {failure}");
    said.iter().for_each(|part| assert!(failure.contains(part), "{words}: no {part:?} in {failure:?}"));
    assert_eq!(vmm.state(), "Paused");
    let refusal = vmm.refuse("PATCH", "/vm", &json!({ "state": "Resumed" }));
    assert!(refusal.contains(&failure), "{refusal}");
    vmm.pause();
    assert_eq!(vmm.counter("faultless_memory_failures_total"), 1);
    assert_eq!(vmm.console().matches("guest: ").count(), 1, "it went on: {}", vmm.console());
    ends_by_signal(&mut vmm);
    // Looked at last: the log is written by a thread that nobody waits for, but the process's end.
    assert!(vmm.log().contains(&failure), "{}", vmm.log());
}

fn wait_for_failure(vmm: &mut Vmm) -> String {
    let started = Instant::now();
    loop {
        let info = vmm.get("/");
        if let Value::String(failure) = &info["failure"] {
            println!("the state said so after {} ms", started.elapsed().as_millis());
            return failure.clone();
        }
        let log = vmm.log();
        assert!(vmm.ended().is_none() && started.elapsed() < WAIT, "no failure: {info}\n{log}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ends_by_signal(vmm: &mut Vmm) {
    let started = Instant::now();
    vmm.signal("TERM");
    let status = vmm.wait_for_exit();
    println!("it ended {} ms after SIGTERM", started.elapsed().as_millis());
    assert_eq!(status.code(), Some(EXIT_MEMORY), "{}", vmm.log());
    vmm.left_nothing_behind();
}

#[test]
fn a_page_that_is_lost_fails_the_guest_that_reads_it() {
    on_kvm_host(|| {
        for memory in ["anonymous", "huge", "memfd"] {
            fails_loudly(&format!("{memory},lost={PAGE}"), &walk(), &["lost", ADDRESS]);
        }
    });
}

#[test]
fn a_page_that_is_lost_fails_the_guest_that_writes_it() {
    on_kvm_host(|| {
        let write = format!("touch-write {CONTENT_MIB}");
        fails_loudly(&format!("anonymous,lost={PAGE}"), &write, &["lost", ADDRESS]);
    });
}

#[test]
fn a_page_that_is_never_answered_for_fails_the_guest() {
    on_kvm_host(|| {
        let words = format!("anonymous,never={PAGE},patience=300");
        fails_loudly(&words, &walk(), &["in time", ADDRESS]);
    });
}

#[test]
fn a_source_that_dies_fails_the_guest() {
    on_kvm_host(|| fails_loudly("anonymous,rough=8,dies=40", &walk(), &["the source is gone"]));
}

#[test]
fn a_thread_that_serves_no_more_fails_the_guest() {
    on_kvm_host(|| fails_loudly("anonymous,panics=40", &walk(), &["has panicked"]));
}

/// The loader reads the kernel's file to a page that is lost. Where it is told so, the start is refused; where it waits
/// as a guest would, the process ends, for nothing has run yet that could be kept.
#[test]
fn a_guest_that_cannot_be_loaded_is_not_started() {
    on_kvm_host(|| {
        let mut vmm = configured("anonymous,lost=256", "hello exit");
        let body = json!({ "action_type": "InstanceStart" }).to_string();
        let answer = vmm.client().raw("PUT", "/actions", Some(body.as_bytes()));
        if probe().unwrap().has(Feature::POISON) {
            let answer = answer.unwrap();
            assert_eq!(answer.status, 400);
            assert!(
                answer.fault_message().contains("guest memory at 0x100000"),
                "{}",
                answer.fault_message()
            );
            assert_eq!(vmm.state(), "Not started");
            let again = vmm.request("PUT", "/actions", &json!({ "action_type": "InstanceStart" }));
            assert!(again.fault_message().contains("in another process"), "{}", again.fault_message());
            vmm.signal("TERM");
            vmm.ends_cleanly();
        } else {
            assert!(answer.is_err(), "nobody is left to answer");
            assert_eq!(vmm.wait_for_exit().code(), Some(EXIT_MEMORY), "{}", vmm.log());
        }
        assert!(vmm.log().contains("guest memory at 0x100000"), "{}", vmm.log());
    });
}

/// Nobody can ask a machine without an API what has become of it, so it ends, and its parent knows why.
#[test]
fn without_an_api_the_process_ends_when_memory_fails() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        let config = json!({
            "boot-source": { "kernel_image_path": bare_metal(Entry::Linux64), "boot_args": walk() },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": RAM_MIB },
        });
        std::fs::write(&file, config.to_string()).unwrap();
        let arguments = ["--no-api", "--config-file", file.to_str().unwrap()];
        let words = format!("anonymous,lost={PAGE}");
        let launch = Launch::new(&arguments).program(Path::new(env!("CARGO_BIN_EXE_served")), &[&words]);
        let mut vmm = launch.with_log().start();
        assert_eq!(vmm.wait_for_exit().code(), Some(EXIT_MEMORY), "{}", vmm.log());
        assert!(vmm.log().contains(ADDRESS), "{}", vmm.log());
    });
}
