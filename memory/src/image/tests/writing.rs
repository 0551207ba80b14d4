use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

use super::*;
use crate::image::file::MemoryFile;
use crate::image::write::write_to;
use crate::threads::scarce::with_threads;
use crate::uffd::tests::machine::HugePages;
use crate::uffd::{Modes, Pagemap, Registered, Wake, open, probe};

/// How many pages of `ram` the page tables know.
fn known(ram: &GuestRam) -> u64 {
    let mut count = 0;
    Pagemap::open().unwrap().known(ram, ram.pages(), &mut |range| count += range.count).unwrap();
    count
}

/// Memory in three regions of data, with zeros that were written in one.
fn striped(backing: Backing) -> GuestRam {
    let ram = ram_of(backing, 8);
    fill(&ram, pages(3, 2), 1);
    fill(&ram, pages(500, 100), 2);
    fill(&ram, pages(2047, 1), 3);
    ram.write_slice(&[0; 4096], GuestAddress(PageIndex(550).offset())).unwrap();
    ram.write_slice(&[0; 4096], GuestAddress(PageIndex(9).offset())).unwrap();
    ram
}

fn striped_data() -> Vec<PageRange> {
    vec![pages(3, 2), pages(500, 50), pages(551, 49), pages(2047, 1)]
}

fn check_striped(ram: &GuestRam, selection: Selection<'_>, threads: usize) {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; 4096], 9 << 20).unwrap();
    let contents = write(ram, selection, &file, &options(threads)).unwrap();
    assert_eq!(data(&contents), striped_data());
    assert_eq!(file.metadata().unwrap().len(), 8 << 20, "what the file had is gone");
    let mut memory = vec![0; 8 << 20];
    ram.read_slice(&mut memory, GuestAddress(0)).unwrap();
    assert!(read_file(&file, ram.pages()) == memory);
    for (range, sums) in contents.summed() {
        let bytes = read_file(&file, range);
        assert!(bytes.chunks(4096).map(crc32c::crc32c).eq(sums.iter().copied()), "{range}");
    }
}

#[test]
fn a_full_file_is_the_memory_with_holes_for_zeros() {
    for backing in [ANONYMOUS, MEMFD, Backing::Anonymous { transparent_huge_pages: true }] {
        let ram = striped(backing);
        for threads in [1, 3] {
            check_striped(&ram, UNSERVED, threads);
            check_striped(&ram, Selection::Full { unserved: false }, threads);
        }
    }
}

#[test]
fn of_a_private_memfd_both_its_own_pages_and_the_memfds_are_written() {
    let base = striped(MEMFD);
    base.discard(pages(500, 20)).unwrap();
    let memfd = base.memfd().unwrap().try_clone_to_owned().unwrap();
    let ram = GuestRam::over_memfd(
        &[RamRange { gpa: GuestAddress(0), size_bytes: 8 << 20 }],
        memfd,
        Sharing::Private,
    );
    let ram = ram.unwrap();
    fill(&ram, pages(500, 20), 2);
    fill(&base, pages(600, 1), 9);
    ram.write_slice(&[0; 4096], GuestAddress(PageIndex(600).offset())).unwrap();
    let before = known(&ram);
    let file = tempfile::tempfile().unwrap();
    write(&ram, UNSERVED, &file, &options(2)).unwrap();
    assert_eq!(known(&ram), before, "what is in the memfd was read there");
    check_striped(&ram, UNSERVED, 2);
}

#[test]
fn memory_of_huge_pages_is_written() {
    let Some(_pool) = HugePages::take(12) else { return };
    for backing in [
        Backing::Hugetlb2M,
        Backing::HugetlbMemfd { sharing: Sharing::Shared },
        Backing::HugetlbMemfd { sharing: Sharing::Private },
    ] {
        let ram = striped(backing);
        let before = known(&ram);
        let file = tempfile::tempfile().unwrap();
        write(&ram, UNSERVED, &file, &options(2)).unwrap();
        assert_eq!(
            (known(&ram), before),
            (3 * 512, 3 * 512),
            "the chunk that was never touched still is not"
        );
        check_striped(&ram, UNSERVED, 2);
    }
}

#[test]
fn pages_that_were_never_touched_stay_untouched() {
    let ram = striped(ANONYMOUS);
    assert_eq!(known(&ram), 104);
    check(&ram);
    assert_eq!(known(&ram), 104);

    let ram = striped(MEMFD);
    let blocks = |ram: &GuestRam| {
        File::from(ram.memfd().unwrap().try_clone_to_owned().unwrap()).metadata().unwrap().blocks()
    };
    let before = blocks(&ram);
    check(&ram);
    assert_eq!(blocks(&ram), before);

    fn check(ram: &GuestRam) {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(data(&write(ram, UNSERVED, &file, &options(2)).unwrap()), striped_data());
        assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20, "the file has holes");
    }
}

#[test]
fn a_diff_has_what_was_named_zero_or_not_and_nothing_else() {
    let ram = striped(ANONYMOUS);
    let named = [pages(3, 1), pages(9, 1), pages(500, 60), pages(560, 10), pages(2046, 2)];
    for threads in [1, 2] {
        let file = tempfile::tempfile().unwrap();
        let contents = write(&ram, Selection::Pages(&named), &file, &options(threads)).unwrap();
        assert_eq!(data(&contents), [pages(3, 1), pages(9, 1), pages(500, 70), pages(2046, 2)]);
        assert!(read_file(&file, pages(4, 1)) == [0; 4096], "not named");
        assert!(read_file(&file, pages(3, 1)) == content(PageIndex(3), 1));
        assert!(read_file(&file, pages(550, 2))[4096..] == content(PageIndex(551), 2));
        assert_eq!(contents.data_pages(), 74);
    }
    let file = tempfile::tempfile().unwrap();
    let none = write(&ram, Selection::Pages(&[]), &file, &options(2)).unwrap();
    assert_eq!((none.data_pages(), file.metadata().unwrap().len()), (0, 8 << 20));
}

#[test]
fn pages_that_cannot_be_named_are_refused_before_anything_is_written() {
    let ram = ram_of(ANONYMOUS, 2);
    let overlapping = [pages(3, 2), pages(4, 1)];
    let unordered = [pages(9, 1), pages(3, 1)];
    let past = [pages(511, 2)];
    let endless = [pages(1, u64::MAX)];
    let far = [pages(u64::MAX, 1)];
    for (named, wrong) in
        [(&overlapping[..], 1), (&unordered[..], 1), (&past[..], 0), (&endless[..], 0), (&far[..], 0)]
    {
        let file = tempfile::tempfile().unwrap();
        let error = write(&ram, Selection::Pages(named), &file, &options(1)).unwrap_err();
        assert!(matches!(error, WriteError::Selection { range } if range == named[wrong]), "{error}");
        assert_eq!(file.metadata().unwrap().len(), 0);
    }
}

#[test]
fn a_poisoned_page_is_an_error_with_its_number() {
    let features = probe().unwrap().features;
    let modes = Modes { missing: true, write_protect: false, minor: false };
    let ram = ram_of(ANONYMOUS, 2);
    let memory = Registered::new(open(features).unwrap(), ram.clone(), modes).unwrap();
    let content = [5; 4096 * 16];
    assert!(memory.copy(pages(0, 16), &content, false, Wake::Now).stop.is_none());
    if memory.poison(pages(70, 1), Wake::Now).stop.is_some() {
        panic!("this needs UFFDIO_POISON, Linux 6.6");
    }
    assert!(memory.zero(pages(16, 54), Wake::Now).stop.is_none());
    for selection in [UNSERVED, Selection::Full { unserved: false }, Selection::Pages(&[pages(65, 30)])] {
        let file = tempfile::tempfile().unwrap();
        let error = write(&ram, selection, &file, &options(2)).unwrap_err();
        let WriteError::Page(error) = error else { panic!("{error}") };
        assert_eq!((error.page, error.source.raw_os_error()), (PageIndex(70), Some(libc::EFAULT)));
    }
}

/// A file that writes little at a time, is interrupted, and fails at one of its writes.
struct Failing {
    file: File,
    /// How many writes there were, and at which there is the error.
    writes: Mutex<usize>,
    fails_at: usize,
    error: io::ErrorKind,
}

impl MemoryFile for Failing {
    fn reset(&self, bytes: u64) -> io::Result<()> {
        self.file.reset(bytes)
    }

    fn write_some(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut writes = self.writes.lock().unwrap();
        *writes += 1;
        match *writes {
            now if now == self.fails_at => Err(self.error.into()),
            now if now % 3 == 0 => Err(io::ErrorKind::Interrupted.into()),
            _ => self.file.write_at(&bytes[..bytes.len().min(20_000)], offset),
        }
    }
}

fn failing(fails_at: usize, error: io::ErrorKind) -> Failing {
    Failing { file: tempfile::tempfile().unwrap(), writes: Mutex::new(0), fails_at, error }
}

#[test]
fn short_and_interrupted_writes_are_gone_on_with() {
    let ram = striped(ANONYMOUS);
    let file = failing(usize::MAX, io::ErrorKind::Other);
    write_to(&ram, UNSERVED, &file, &options(2)).unwrap();
    let mut memory = vec![0; 8 << 20];
    ram.read_slice(&mut memory, GuestAddress(0)).unwrap();
    assert!(read_file(&file.file, ram.pages()) == memory);
}

#[test]
fn a_failure_at_any_write_is_told_with_its_place_and_what_to_do() {
    let ram = striped(ANONYMOUS);
    let all = failing(usize::MAX, io::ErrorKind::Other);
    write_to(&ram, UNSERVED, &all, &options(1)).unwrap();
    let writes = *all.writes.lock().unwrap();
    assert!(writes > 20, "{writes} writes are enough to be worth failing each");
    for (threads, fails_at) in [1, 2].into_iter().flat_map(|threads| (1..=20).map(move |nth| (threads, nth)))
    {
        let full = failing(fails_at, io::ErrorKind::StorageFull);
        let error = write_to(&ram, UNSERVED, &full, &options(threads)).unwrap_err();
        let WriteError::NoRoom { offset, needed_bytes_max, .. } = error else { panic!("{error}") };
        assert!(offset < 8 << 20 && needed_bytes_max > 0 && needed_bytes_max <= 8 << 20);
        assert!(error.to_string().contains(&format!("free {needed_bytes_max} bytes")), "{error}");
        let broken = failing(fails_at, io::ErrorKind::Other);
        let error = write_to(&ram, UNSERVED, &broken, &options(threads)).unwrap_err();
        assert!(matches!(error, WriteError::File { .. }), "{error}");
    }
}

#[test]
fn a_file_system_that_is_full_is_told() {
    let ram = ram_of(ANONYMOUS, 8);
    fill(&ram, ram.pages(), 4);
    let full = File::options().write(true).open("/dev/full").unwrap();
    struct Full(File);
    impl MemoryFile for Full {
        fn reset(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn write_some(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
            self.0.write_at(bytes, offset)
        }
    }
    let error = write_to(&ram, UNSERVED, &Full(full), &options(1)).unwrap_err();
    let needed = 8 << 20;
    assert!(
        matches!(error, WriteError::NoRoom { offset: 0, needed_bytes_max, .. } if needed_bytes_max == needed)
    );
    let read_only = File::open("/proc/self/exe").unwrap();
    let error = write(&ram, UNSERVED, &read_only, &options(1)).unwrap_err();
    assert!(matches!(error, WriteError::Size { bytes, .. } if bytes == needed), "{error}");
}

#[test]
fn progress_is_told_and_stops_it() {
    let ram = striped(ANONYMOUS);
    let progress = Progress::default();
    let options = WriteOptions { progress: Some(&progress), ..options(2) };
    write(&ram, UNSERVED, &tempfile::tempfile().unwrap(), &options).unwrap();
    assert_eq!(progress.done_pages(), 2048);
    progress.cancel();
    let error = write(&ram, UNSERVED, &tempfile::tempfile().unwrap(), &options).unwrap_err();
    assert!(matches!(error, WriteError::Cancelled));
    assert_eq!(progress.done_pages(), 2048, "nothing more was done");
}

#[test]
fn of_a_mapped_file_both_the_guests_pages_and_the_files_are_written() {
    let saved = tempfile::tempfile().unwrap();
    write(&striped(ANONYMOUS), UNSERVED, &saved, &options(1)).unwrap();
    let ranges: Vec<_> = ram_of(ANONYMOUS, 8).regions().iter().map(crate::ram::RamRegion::range).collect();
    let ram = GuestRam::over_file(&ranges, saved.try_clone().unwrap()).unwrap();
    fill(&ram, pages(500, 1), 9);
    fill(&ram, pages(700, 1), 9);
    let (before, file) = (known(&ram), tempfile::tempfile().unwrap());
    let contents = write(&ram, UNSERVED, &file, &options(2)).unwrap();
    assert_eq!(known(&ram), before, "what was never touched is read from the file");
    assert_eq!(contents.data_pages(), 2 + 50 + 49 + 1 + 1);
    let mut memory = vec![0; 8 << 20];
    ram.read_slice(&mut memory, GuestAddress(0)).unwrap();
    assert!(read_file(&file, ram.pages()) == memory);
    saved.set_len(4 << 20).unwrap();
    let cut_off = WriteError::CutOff { actual: 4 << 20, expected: 8 << 20 };
    let refused = write(&ram, UNSERVED, &file, &options(2)).unwrap_err();
    assert_eq!(refused.to_string(), cut_off.to_string(), "what is gone is not zero");
}

#[test]
fn fewer_threads_than_were_wanted_write_the_same() {
    let ram = ram_of(ANONYMOUS, 16);
    fill(&ram, pages(0, 700), 1);
    fill(&ram, pages(3000, 1000), 2);
    for given in [0, 1] {
        let file = tempfile::tempfile().unwrap();
        let contents = with_threads(given, || write(&ram, UNSERVED, &file, &options(4)).unwrap());
        assert_eq!(data(&contents), [pages(0, 700), pages(3000, 1000)]);
        assert!(read_file(&file, ram.pages()) == memory(&ram));
    }
}
