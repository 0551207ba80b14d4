use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::image::file::MemoryFile;
use crate::image::overlay::merge;

#[test]
fn a_diff_in_its_base_is_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (ram, layers) = chain(dir.path());
    let [base, diff] = [0, 1].map(|layer| reopen(&layers[layer].0));
    let merged = overlay((&base, &layers[0].1), (&diff, &layers[1].1), None).unwrap();
    assert!(read_file(&base, ram.pages()) == memory(&ram));
    assert_eq!(data(&merged), [pages(8, 3), pages(40, 8)]);
    verify(&base, &merged, None).unwrap();
    assert!(verify(&base, &layers[0].1, None).is_err(), "the base is another now");
    assert_eq!(Stack::open(&layers, 2 << 20).unwrap().contents(), &merged);
}

#[test]
fn nothing_is_written_where_either_is_not_what_was_saved() {
    for (damaged, page) in [(0, 41), (0, 200), (1, 9), (1, 200)] {
        let dir = tempfile::tempdir().unwrap();
        let (ram, layers) = chain(dir.path());
        flip_a_bit(&layers[damaged].0, PageIndex(page));
        let [base, diff] = [0, 1].map(|layer| reopen(&layers[layer].0));
        let before = read_file(&base, ram.pages());
        let error = overlay((&base, &layers[0].1), (&diff, &layers[1].1), None).unwrap_err();
        let (OverlayError::Base(why) | OverlayError::Diff(why)) = &error else { panic!("{error}") };
        assert_eq!(matches!(error, OverlayError::Base(_)), damaged == 0, "{error}");
        assert!(matches!(why, VerifyError::Differ { ranges, .. } if ranges[..] == [pages(page, 1)]), "{why}");
        assert!(read_file(&base, ram.pages()) == before);
    }
}

/// A file that takes a page at a time, and stops taking them.
struct Cut<'a> {
    file: &'a File,
    left: AtomicUsize,
}

impl MemoryFile for Cut<'_> {
    fn reset(&self, _: u64) -> io::Result<()> {
        panic!("a base is not written anew")
    }

    fn write_some(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?, Ordering::Relaxed);
        self.file.write_at(&bytes[..4096], offset)
    }
}

#[test]
fn a_merge_that_was_cut_off_anywhere_is_done_again() {
    for written in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let (ram, layers) = chain(dir.path());
        let [base, diff] = [0, 1].map(|layer| reopen(&layers[layer].0));
        let cut = Cut { file: &base, left: AtomicUsize::new(written) };
        let error = merge((&base, &layers[0].1), (&diff, &layers[1].1), None, &cut).unwrap_err();
        let expected = [9, 10, 40].map(|page| PageIndex(page).offset())[written];
        assert!(matches!(error, OverlayError::Write { offset, .. } if offset == expected), "{error}");
        overlay((&base, &layers[0].1), (&diff, &layers[1].1), None).unwrap();
        assert!(read_file(&base, ram.pages()) == memory(&ram));
    }
}
