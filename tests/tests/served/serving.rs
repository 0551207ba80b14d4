//! Every backing, from every kind of source: the guest compares every word, twice, and writes all of it anew.

use super::*;

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
/// page cache protected: to a shared memfd it is copied then, and who asks for a clone is told at the start.
fn protectable<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let (cached, own): (Vec<_>, Vec<_>) = words.iter().partition(|words| words.starts_with("clone"));
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
