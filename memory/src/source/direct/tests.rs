use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use super::*;
use crate::page::PageIndex;
use crate::source::pattern::{Pattern, fill_page, range_is};

const PAGES: u64 = 2048;
const BASE: Pattern = |page| (page.0 % 512 < 300).then_some(1);
const DIFF: Pattern = |page| (page.0 % 11 == 0 || (1024..1500).contains(&page.0)).then_some(2);
const BOTH: Pattern = |page| DIFF(page).or_else(|| BASE(page));

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

fn prefetch(range: PageRange) -> PageRequest {
    PageRequest { range, priority: Priority::Prefetch }
}

fn demand(range: PageRange) -> PageRequest {
    PageRequest { range, priority: Priority::Demand }
}

/// On the disk that this is built on: a temporary directory may be in memory.
fn on_disk() -> TempDir {
    tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
}

fn write(dir: &Path, name: &str, pattern: Pattern) -> PathBuf {
    let path = dir.join(name);
    let file = fs::File::create(&path).unwrap();
    file.set_len(pages(0, PAGES).bytes()).unwrap();
    for page in pages(0, PAGES).pages() {
        let mut bytes = [0; 4096];
        if let Some(seed) = pattern(page) {
            fill_page(page, seed, &mut bytes);
            file.write_all_at(&bytes, page.offset()).unwrap();
        }
    }
    path
}

fn stack(dir: &TempDir) -> DirectSource {
    open(&[write(dir.path(), "base", BASE), write(dir.path(), "diff", DIFF)])
}

fn open(paths: &[PathBuf]) -> DirectSource {
    DirectSource::open(Arc::new(Image::open(paths, pages(0, PAGES).bytes()).unwrap())).unwrap()
}

/// Sleeps until the source says that there is something.
fn wait(source: &DirectSource) {
    if !source.has_more() {
        let mut fds = [PollFd::from_borrowed_fd(source.readiness().unwrap(), PollFlags::IN)];
        let budget = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&budget)).unwrap(), 1, "nothing came");
    }
}

/// Takes answers until `count` pages were answered; gives those that were lost, with why.
fn take(source: &mut DirectSource, count: usize) -> Vec<(PageRange, String)> {
    let (mut answered, mut lost) = (BTreeSet::new(), Vec::new());
    while answered.len() < count {
        wait(source);
        let completed = source.complete(&mut |reply| {
            let range = match reply {
                PageReply::Bytes(range, bytes) => {
                    assert!(range_is(BOTH, range, bytes), "{range}");
                    range
                }
                PageReply::Zero(range) => {
                    assert!(range.pages().all(|page| BOTH(page).is_none()), "{range}");
                    range
                }
                PageReply::Lost(range, error) => {
                    lost.push((range, error.to_string()));
                    range
                }
                PageReply::InPlace(range) => panic!("{range}"),
            };
            assert!(range.pages().all(|page| answered.insert(page)), "{range} came twice");
        });
        completed.unwrap();
    }
    assert!(!source.has_more());
    lost
}

#[test]
fn all_of_a_stack_comes_once_and_right() {
    all_of_a_stack_comes(stack(&on_disk()));
}

#[test]
fn a_file_in_memory_is_read_or_refused_with_what_to_do() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let paths = [write(dir.path(), "base", BASE), write(dir.path(), "diff", DIFF)];
    match DirectSource::open(Arc::new(Image::open(&paths, pages(0, PAGES).bytes()).unwrap())) {
        Ok(source) => all_of_a_stack_comes(source),
        // Kernels before 6.6.
        Err(error) => assert!(error.to_string().ends_with("read it through the page cache"), "{error}"),
    }
}

fn all_of_a_stack_comes(mut source: DirectSource) {
    source.submit(&[prefetch(pages(0, PAGES))]).unwrap();
    assert!(take(&mut source, 2048).is_empty());
    let singles: Vec<_> = (0..PAGES).map(|page| demand(pages(page, 1))).collect();
    source.submit(&singles).unwrap();
    assert!(take(&mut source, 2048).is_empty());
}

#[test]
fn demand_does_not_wait_for_the_prefetch_before_it() {
    let dir = on_disk();
    let mut source = stack(&dir);
    source.submit(&[prefetch(pages(0, PAGES - 1))]).unwrap();
    source.submit(&[demand(pages(2047, 1)), demand(pages(1441, 1))]).unwrap();
    let mut prefetched_first = 0;
    let mut is_answered = false;
    while !is_answered {
        wait(&source);
        let completed = source.complete(&mut |reply| match reply {
            PageReply::Bytes(PageRange { start: PageIndex(1441), count: 1 }, _) => is_answered = true,
            PageReply::Bytes(range, _) => prefetched_first += range.count,
            _ => {}
        });
        completed.unwrap();
    }
    assert!(prefetched_first < 1024, "{prefetched_first} pages came before one that is waited for");
}

#[test]
fn one_turn_gives_a_portion_of_prefetch_and_says_that_there_is_more() {
    let dir = on_disk();
    let mut source = stack(&dir);
    source.submit(&[prefetch(pages(1024, 400))]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut portions = Vec::new();
    while portions.iter().sum::<u64>() < 400 {
        assert!(Instant::now() < deadline);
        wait(&source);
        let mut portion = 0;
        source
            .complete(&mut |reply| {
                let PageReply::Bytes(range, _) = reply else { panic!("{reply:?}") };
                portion += range.count;
            })
            .unwrap();
        portions.push(portion);
    }
    assert!(portions.iter().all(|portion| *portion < PIECE_PAGES + SLOT_PAGES), "{portions:?}");
}

#[test]
fn what_was_cut_off_is_lost_by_name_and_what_is_before_it_is_not() {
    let dir = on_disk();
    let path = write(dir.path(), "base", BASE);
    let mut source = open(std::slice::from_ref(&path));
    OpenOptions::new().write(true).open(&path).unwrap().set_len(20 * 4096 + 700).unwrap();
    let mut replies = Vec::new();
    source.submit(&[demand(pages(12, 10)), demand(pages(40, 1))]).unwrap();
    while replies.len() < 3 {
        wait(&source);
        let completed = source.complete(&mut |reply| {
            replies.push(match reply {
                PageReply::Bytes(range, bytes) => {
                    assert!(range_is(BASE, range, bytes));
                    (range, true)
                }
                PageReply::Lost(range, SourceError::Truncated { range: missing }) => {
                    assert_eq!(range, missing);
                    (range, false)
                }
                other => panic!("{other:?}"),
            });
        });
        completed.unwrap();
    }
    replies.sort_by_key(|(range, _)| range.start);
    assert_eq!(replies, [(pages(12, 8), true), (pages(20, 2), false), (pages(40, 1), false)]);
}

#[test]
fn a_disk_that_fails_loses_what_is_on_it_and_nothing_else() {
    let dir = on_disk();
    let mut source = stack(&dir);
    // A file that cannot be read in the place of the base.
    source.files[0] = OpenOptions::new().write(true).open(dir.path().join("base")).unwrap();
    source.submit(&[demand(pages(9, 4)), demand(pages(1100, 3))]).unwrap();
    let lost = take(&mut source, 7);
    assert_eq!(lost.iter().map(|(range, _)| *range).collect::<Vec<_>>(), [pages(9, 2), pages(12, 1)]);
    assert_eq!(lost[0].1, "reading pages 9..11 failed");
}

#[test]
fn what_is_not_in_the_image_is_lost_at_once() {
    let dir = on_disk();
    let mut source = stack(&dir);
    source.submit(&[demand(pages(PAGES, 1))]).unwrap();
    assert!(source.has_more());
    let lost = take(&mut source, 1);
    assert_eq!(lost[0].0, pages(PAGES, 1));
    assert!(lost[0].1.contains("truncated"), "{}", lost[0].1);
}

#[test]
fn a_batch_over_the_bound_is_refused_and_the_source_goes_on() {
    let dir = on_disk();
    let mut source = stack(&dir);
    let batch = vec![demand(pages(1, 1)); crate::source::QUEUED_REQUESTS_MAX + 1];
    assert!(matches!(source.submit(&batch), Err(SourceError::QueueFull { queued: 0 })));
    source.submit(&[demand(pages(1, 1))]).unwrap();
    assert!(take(&mut source, 1).is_empty());
}

#[test]
fn dropping_it_with_reads_in_flight_waits_for_them() {
    let dir = on_disk();
    for _ in 0..50 {
        let mut source = stack_of_one(&dir);
        source.submit(&[prefetch(pages(0, PAGES))]).unwrap();
    }
}

fn stack_of_one(dir: &TempDir) -> DirectSource {
    let path = dir.path().join("base");
    open(&[if path.exists() { path } else { write(dir.path(), "base", BASE) }])
}
