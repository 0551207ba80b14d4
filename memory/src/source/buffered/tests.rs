use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;
use crate::page::PageIndex;
use crate::source::pattern::{Pattern, fill_page, page_is, range_is};
use crate::source::{PageReply, PageRequest, PageSource, Priority, Reading};

const PAGES: u64 = 256;
/// The base: every page of a third of the memory.
const BASE: Pattern = |page| (page.0 < 85).then_some(1);
/// The diff: single pages and stretches, over the base and over its holes.
const DIFF: Pattern = |page| (page.0 % 7 == 0 || (60..110).contains(&page.0)).then_some(2);
const BOTH: Pattern = |page| DIFF(page).or_else(|| BASE(page));

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

fn write(dir: &tempfile::TempDir, name: &str, pattern: Pattern) -> PathBuf {
    let path = dir.path().join(name);
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

fn reader(paths: &[PathBuf]) -> ImageReader {
    ImageReader::new(Arc::new(Image::open(paths, pages(0, PAGES).bytes()).unwrap()))
}

#[test]
fn every_page_of_a_stack_is_its_own_whatever_was_in_the_buffer() {
    let dir = tempfile::tempdir().unwrap();
    let mut reader = reader(&[write(&dir, "base", BASE), write(&dir, "diff", DIFF)]);
    for count in [1, 2, 5, 64, 256] {
        for start in (0..=PAGES - count).step_by(usize::try_from(count).unwrap()) {
            let range = pages(start, count);
            let mut into = vec![0xee; bytes_of(count)];
            match reader.read(range, &mut into).unwrap() {
                Content::Bytes => assert!(range_is(BOTH, range, &into), "{range}"),
                Content::Zero => {
                    assert!(range.pages().all(|page| BOTH(page).is_none()), "{range}");
                    assert!(into.iter().all(|byte| *byte == 0xee), "zero pages are said and not written");
                }
            }
        }
    }
}

#[test]
fn what_was_cut_off_is_lost_and_the_rest_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir, "base", BASE);
    let mut source = Reading::new(reader(std::slice::from_ref(&path)));
    OpenOptions::new().write(true).open(&path).unwrap().set_len(40 * 4096).unwrap();
    let demand = |range| PageRequest { range, priority: Priority::Demand };
    source.submit(&[demand(pages(40, 1)), demand(pages(39, 1)), demand(pages(200, 1))]).unwrap();
    let mut lost = Vec::new();
    let completed = source.complete(&mut |reply| match reply {
        PageReply::Lost(range, error) => lost.push((range, error.to_string())),
        PageReply::Bytes(range, bytes) => assert!(page_is(range.start, 1, bytes) && range.start.0 == 39),
        // It was a hole when the image was opened.
        PageReply::Zero(range) => assert_eq!(range, pages(200, 1)),
        PageReply::InPlace(range) => panic!("{range}"),
    });
    completed.unwrap();
    let message = "the source ends before pages 40..41: it is truncated, or of another guest".to_owned();
    assert_eq!(lost, [(pages(40, 1), message)]);
}
