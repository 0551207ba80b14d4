//! A guest whose memory has not arrived when it starts: every backing and kind of source, through KVM, and what becomes
//! of it when a page does not come. `tests/src/served` says what the words mean.
//!
//! All of it runs on this machine's KVM, and on stock kernels of the lab: 6.1 has none of POISON, MOVE and
//! WP_UNPOPULATED, and there the next best is what is tested.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::path::Path;
use std::time::{Duration, Instant};

use memory::uffd::{Feature, probe};
use serde_json::{Value, json};
use tests::guest::{Entry, bare_metal};
use tests::host::{HugePages, on_kvm_host, run_tests_in_lab};
use tests::served::{CONTENT_MIB, RAM_MIB, SEED, content};
use tests::vmm::{Launch, Vmm, WAIT};

/// The number of a page in the midst of what the guest walks over, and where the guest has it.
const PAGE: u64 = 5000;
const ADDRESS: &str = "0x1388000";
/// What a process ends with whose guest's memory has failed.
const EXIT_MEMORY: i32 = 149;

fn launch(words: &str) -> Launch {
    Launch::new(&[]).program(Path::new(env!("CARGO_BIN_EXE_served")), &[words])
}

/// A VMM whose memory is served as `words` say, about to boot the guest with these commands.
fn configured(words: &str, commands: &str) -> Vmm {
    let vmm = Vmm::serve(launch(words).with_api());
    vmm.machine(1, u32::try_from(RAM_MIB).unwrap());
    vmm.boot_source(bare_metal(Entry::Linux64), None, commands);
    vmm
}

fn booted(words: &str, commands: &str) -> Vmm {
    let vmm = configured(words, commands);
    vmm.start_instance();
    vmm
}

fn walk() -> String {
    format!("walk {CONTENT_MIB} {SEED}")
}

/// What the served program counted, by its name.
fn count(vmm: &Vmm, name: &str) -> u64 {
    let log = vmm.log();
    let mut words = log.lines().filter(|line| line.starts_with("served: ")).flat_map(|line| line.split(' '));
    let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {name} in\n{log}")).parse().unwrap()
}

/// Boots, has the guest look at every word of what was served, twice, and write all of it anew.
fn serves(words: &str) -> Vmm {
    let mut vmm = booted(words, &format!("{0} {0} fill {CONTENT_MIB} 8 walk {CONTENT_MIB} 8 exit", walk()));
    for _ in 0..3 {
        let line = vmm.wait_for_line("guest: walk");
        assert!(line.contains(&format!("walk {CONTENT_MIB} MiB, 0 wrong pages")), "{words}: {line}");
    }
    vmm.ends_cleanly();
    assert_eq!(count(&vmm, "lost"), 0, "{words}");
    println!(
        "{words}: {}",
        vmm.log().lines().filter(|line| line.starts_with("served:")).collect::<Vec<_>>().join("; ")
    );
    vmm
}

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
fn anonymous_memory_is_served() {
    on_kvm_host(|| {
        let vmm = serves("anonymous");
        assert!(count(&vmm, "demanded") > 0);
        serves("huge");
    });
}

#[test]
fn chunks_are_filled_beside() {
    on_kvm_host(|| {
        for words in ["huge,fill", "anonymous,fill", "memfd,fill"] {
            assert!(count(&serves(words), "filled") > 0, "{words}");
        }
        // A reader alone is for huge pages that are moved in. Where none can be, all is served on demand.
        let moves = probe().unwrap().has(Feature::MOVE);
        assert_eq!(count(&serves("huge,reader"), "filled") > 0, moves);
    });
}

#[test]
fn a_saved_image_is_served() {
    on_kvm_host(|| {
        let image = content::image().unwrap();
        serves(&format!("anonymous,image={}", image.display()));
        serves(&format!("huge,fill,image={}", image.display()));
    });
}

#[test]
fn memfds_are_served_and_shared() {
    on_kvm_host(|| {
        for words in ["memfd", "shared", "clone"] {
            serves(words);
        }
    });
}

#[test]
fn huge_pages_of_a_pool_are_served() {
    on_kvm_host(|| {
        let pool = HugePages::reserve(RAM_MIB / 2);
        if pool.is_some() {
            serves("hugetlb");
            serves("hugetlb,rough=5");
        } else {
            let message = configured("hugetlb", "hello exit").refuse(
                "PUT",
                "/actions",
                &json!({ "action_type": "InstanceStart" }),
            );
            assert!(message.contains("vm.nr_hugepages"), "{message}");
            println!("NOT TESTED: the machine has no huge pages; what it says then: {message}");
        }
        drop(pool);
    });
}

#[test]
fn rough_sources_are_served_all_the_same() {
    on_kvm_host(|| {
        for words in
            ["anonymous,rough=1", "huge,rough=2,reader", "memfd,rough=3", "anonymous,rough=4,flaky=5000:3"]
        {
            serves(words);
        }
    });
}

/// Memory of which every page can be seen before it is written, of `words`. Before Linux 6.4 a page cannot come from a
/// page cache protected, and who asks for that is told at the start.
fn protectable<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let (cached, own): (Vec<_>, Vec<_>) =
        words.iter().partition(|words| words.starts_with("memfd") || words.starts_with("clone"));
    if probe().unwrap().has(Feature::WRITE_PROTECT_UNPOPULATED) {
        return words.to_vec();
    }
    for words in cached {
        let start = json!({ "action_type": "InstanceStart" });
        let message = configured(words, "hello exit").refuse("PUT", "/actions", &start);
        assert!(message.contains("cannot write-protect memory of this kind"), "{words}: {message}");
    }
    own
}

/// Through KVM, one access is retried more than once: the page is missing, comes protected, and is written then.
#[test]
fn pages_are_seen_before_they_are_written() {
    on_kvm_host(|| {
        let all = ["anonymous,protect", "huge,protect,fill", "memfd,protect", "clone,protect"];
        for words in [&protectable(&all)[..], &["anonymous,protect,rough=9"]].concat() {
            let vmm = serves(words);
            let pages = CONTENT_MIB << 8;
            assert!(count(&vmm, "told") >= pages, "{words}: every page that was written was told of");
            assert_eq!(count(&vmm, "wrong"), 0, "{words}");
        }
    });
}

/// The same with no read before: the first access to a missing page is the write.
#[test]
fn pages_that_come_protected_are_written_at_once() {
    on_kvm_host(|| {
        for words in protectable(&["anonymous,protect", "memfd,protect"]) {
            let commands = format!("touch-write {CONTENT_MIB} touch {CONTENT_MIB} exit");
            let mut vmm = booted(words, &commands);
            let line = vmm.wait_for_line("guest: touch-write");
            assert!(line.contains(&format!("{} pages", CONTENT_MIB << 8)), "{line}");
            vmm.ends_cleanly();
            assert!(count(&vmm, "told") >= CONTENT_MIB << 8, "{words}");
            assert_eq!(count(&vmm, "wrong"), 0, "{words}");
        }
    });
}

#[test]
fn a_paused_guest_goes_on_among_its_faults() {
    on_kvm_host(|| {
        let mut vmm = booted("anonymous,rough=6", &format!("hello {} exit", walk()));
        vmm.wait_for_line("guest: hello");
        for _ in 0..10 {
            vmm.pause();
            vmm.resume();
        }
        assert!(vmm.wait_for_line("guest: walk").contains(" 0 wrong pages"));
        vmm.ends_cleanly();
    });
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

/// All of the above on a stock kernel, in one boot of the lab.
fn all_in_lab(series: &str) {
    content::image().unwrap();
    let executable = std::env::current_exe().unwrap();
    run_tests_in_lab(series, &executable, &["--skip", "stock_kernel"], 14);
}

#[test]
fn stock_kernel_6_1() {
    all_in_lab("6.1");
}

#[test]
fn stock_kernel_6_12() {
    all_in_lab("6.12");
}
