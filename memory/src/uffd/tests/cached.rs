use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;

#[test]
fn cached_pages_are_mapped_once() {
    let minor = Modes { minor: true, ..Modes::default() };
    let registered = registered(MEMFD, 2, minor);
    assert_eq!(
        registered.map_cached(page(4), false, Wake::Now),
        stopped(0, Stop::NoSource),
        "no such page yet"
    );
    let file = std::fs::File::from(registered.ram().memfd().unwrap().try_clone_to_owned().unwrap());
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes(0x42, 1), 4 * 4096).unwrap();
    let reader = touch(&registered, 4, None);
    assert_eq!(next_fault(&registered).kind, FaultKind::Minor);
    assert_eq!(registered.map_cached(page(4), false, Wake::Now), done(1));
    assert_eq!(reader.recv_timeout(BUDGET).unwrap(), 0x42);
    assert_eq!(registered.map_cached(page(4), false, Wake::Now), stopped(0, Stop::Exists));
}

/// Bits of `/proc/self/pagemap`.
const IS_PRESENT: u64 = 1 << 63;
const IS_OF_FILE: u64 = 1 << 61;

const ALL_MODES: Modes = Modes { missing: true, write_protect: true, minor: true };
const NO_WP: Modes = Modes { missing: true, write_protect: false, minor: true };

fn pagemap(memory: &Memory, index: u64) -> u64 {
    let mut entry = [0; 8];
    let number = PageIndex::at_offset(memory.ram().base_address()).0 + index;
    File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entry, number * 8).unwrap();
    u64::from_le_bytes(entry)
}

/// The numbers of `/proc/self/smaps` for the mapping, in KiB: resident, and its share of what several map.
fn resident_and_share_kib(memory: &Memory) -> (u64, u64) {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{:x}-", memory.ram().base_address());
    let mapping = smaps.lines().skip_while(|line| !line.starts_with(&start));
    let number = |name: &str| {
        let line = mapping.clone().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    (number("Rss:"), number("Pss:"))
}

/// Two guests over one memfd, each with a userfaultfd.
fn clones(modes: Modes) -> (GuestRam, [Memory; 2]) {
    let template = ram_of(MEMFD, 2);
    let clone = || {
        let memfd = template.memfd().unwrap().try_clone_to_owned().unwrap();
        let range = RamRange { gpa: GuestAddress(0), size_bytes: 2 << 20 };
        register(GuestRam::over_memfd(&[range], memfd, Sharing::Private).unwrap(), modes)
    };
    let clones = [clone(), clone()];
    (template, clones)
}

fn cached(ram: &GuestRam, index: u64) -> u8 {
    let mut page = bytes(0, 1);
    ram.read_cached(PageIndex(index).alone(), &mut page).unwrap();
    page[0]
}

#[test]
fn clones_share_a_page_until_one_writes_it() {
    let (template, clones) = clones(NO_WP);
    template.write_cached(page(4), &bytes(0x42, 1)).unwrap();
    for clone in &clones {
        let reader = touch(clone, 4, None);
        assert_eq!(next_fault(clone).kind, FaultKind::Minor);
        assert_eq!(clone.map_cached(page(4), false, Wake::Now), done(1));
        assert_eq!(reader.recv_timeout(BUDGET).unwrap(), 0x42);
        assert_eq!(pagemap(clone, 4) & (IS_PRESENT | IS_OF_FILE), IS_PRESENT | IS_OF_FILE);
    }
    assert_eq!(clones.each_ref().map(resident_and_share_kib), [(4, 2); 2], "one page, half of it each's");

    let writer = touch(&clones[0], 4, Some(0x43));
    assert_eq!(writer.recv_timeout(BUDGET).unwrap(), 0x43, "copied on write, and nobody is asked");
    assert_eq!(pagemap(&clones[0], 4) & (IS_PRESENT | IS_OF_FILE), IS_PRESENT, "a page of its own");
    assert_eq!(clones.each_ref().map(resident_and_share_kib), [(4, 4); 2]);
    assert_eq!((content(&clones[0], 4), content(&clones[1], 4), cached(&template, 4)), (0x43, 0x42, 0x42));
}

#[test]
fn a_write_to_a_cached_page_is_minor_and_then_its_own() {
    let (template, [clone, _]) = clones(NO_WP);
    template.write_cached(page(4), &bytes(0x42, 1)).unwrap();
    let writer = touch(&clone, 4, Some(1));
    let fault = next_fault(&clone);
    assert_eq!((fault.kind, fault.access), (FaultKind::Minor, Access::Write));
    assert_eq!(clone.map_cached(page(4), false, Wake::Now), done(1));
    assert_eq!(writer.recv_timeout(BUDGET).unwrap(), 1);
    assert_eq!((content(&clone, 4), cached(&template, 4)), (1, 0x42));
}

#[test]
fn absent_pages_are_missing_and_cached_ones_minor() {
    for backing in [MEMFD, Backing::MemfdPrivate] {
        let memory = registered(backing, 2, NO_WP);
        memory.ram().write_cached(page(1), &bytes(0x42, 1)).unwrap();
        let readers = [touch(&memory, 0, None), touch(&memory, 1, None)];
        let mut faults = [next_fault(&memory), next_fault(&memory)].map(|fault| (fault.page.0, fault.kind));
        faults.sort_by_key(|(page, _)| *page);
        assert_eq!(faults, [(0, FaultKind::Missing), (1, FaultKind::Minor)], "{backing:?}");
        // What a source brings is written to the cache and mapped from there, so that the next clone has it, too.
        memory.ram().write_cached(page(0), &bytes(0x41, 1)).unwrap();
        assert_eq!(memory.map_cached(pages(0, 2), false, Wake::Now), done(2), "{backing:?}");
        assert_eq!(readers.map(|reader| reader.recv_timeout(BUDGET).unwrap()), [0x41, 0x42]);
    }
}

#[test]
fn a_cached_page_mapped_protected_faults_at_its_first_write() {
    for backing in [MEMFD, Backing::MemfdPrivate] {
        let memory = registered(backing, 2, ALL_MODES);
        memory.ram().write_cached(page(3), &bytes(0x42, 1)).unwrap();
        if !machine::kernel_has(Feature::WRITE_PROTECT_UNPOPULATED) {
            // Linux 6.4 has it, and brings the mode that is meant.
            return assert_eq!(memory.map_cached(page(3), true, Wake::Now), stopped(0, Stop::Unsupported));
        }
        assert_eq!(memory.map_cached(page(3), true, Wake::Now), done(1));
        assert_eq!(content(&memory, 3), 0x42);
        let writer = touch(&memory, 3, Some(0x11));
        assert_eq!(next_fault(&memory).kind, FaultKind::WriteProtected, "{backing:?}");
        assert_eq!(content(&memory, 3), 0x42, "{backing:?}");
        assert_eq!(memory.unprotect(page(3)), done(1));
        assert_eq!(writer.recv_timeout(BUDGET).unwrap(), 0x11);
        let in_memfd = if backing == MEMFD { 0x11 } else { 0x42 };
        assert_eq!((content(&memory, 3), cached(memory.ram(), 3)), (0x11, in_memfd), "{backing:?}");
    }
}

#[test]
fn a_removed_page_of_a_clone_is_minor_and_is_given_zeros_all_the_same() {
    let zero = |memory: &Memory, index| memory.zero(page(index), Wake::Now);
    let copy = |memory: &Memory, index| memory.copy(page(index), &bytes(0, 1), false, Wake::Now);
    for place in [zero, copy] {
        let (template, [clone, _]) = clones(NO_WP);
        template.write_cached(page(4), &bytes(0x42, 1)).unwrap();
        assert_eq!(clone.map_cached(page(4), false, Wake::Now), done(1));
        let ram = clone.ram().clone();
        let remover = thread::spawn(move || ram.discard(page(4)).unwrap());
        assert_eq!(next_event(&clone), Event::Removed(page(4)));
        remover.join().unwrap();
        let reader = touch(&clone, 4, None);
        assert_eq!(next_fault(&clone).kind, FaultKind::Minor, "the memfd has it still");
        assert_eq!(place(&clone, 4), done(1));
        assert_eq!(reader.recv_timeout(BUDGET).unwrap(), 0);
        assert_eq!(cached(&template, 4), 0x42);
    }
}
