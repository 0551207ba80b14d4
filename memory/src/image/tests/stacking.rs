use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::source::{Content, ImageError, PageReader, SourceError};

const BYTES: u64 = 2 << 20;

/// All that a stack reads, piece by piece.
fn read_stack(stack: &Stack, piece: u64) -> Result<Vec<u8>, SourceError> {
    let mut reader = stack.reader();
    let mut all = Vec::new();
    let mut rest = stack.image().pages();
    while !rest.is_empty() {
        let (now, later) = rest.split_at(piece);
        let mut bytes = vec![0xee; usize::try_from(now.bytes()).unwrap()];
        if reader.read(now, &mut bytes)? == Content::Zero {
            bytes.fill(0);
        }
        all.extend(bytes);
        rest = later;
    }
    Ok(all)
}

fn verify_layer(layer: &(PathBuf, Contents)) -> Result<(), VerifyError> {
    verify(&File::open(&layer.0).unwrap(), &layer.1, None)
}

fn corrupt(layers: &[(PathBuf, Contents)]) -> PageRange {
    match read_stack(&Stack::open(layers, BYTES).unwrap(), 64) {
        Err(SourceError::Corrupt { range }) => range,
        other => panic!("a page that is not what was saved is to be found: {:?}", other.map(|_| ())),
    }
}

fn differing(layer: &(PathBuf, Contents)) -> Vec<PageRange> {
    match verify_layer(layer) {
        Err(VerifyError::Differ { ranges, .. }) => ranges,
        other => panic!("a page that is not what was saved is to be found: {other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_stack_reads_what_the_memory_was(
        generations in vec(vec((0_u64..512, 1_u64..40, 0_u8..4), 0..6), 1..5), memfd: bool, threads in 1_usize..4,
        piece in 1_u64..100,
    ) {
        let ram = ram_of(if memfd { MEMFD } else { ANONYMOUS }, 2);
        let dir = tempfile::tempdir().unwrap();
        let mut layers: Vec<(PathBuf, Contents)> = Vec::new();
        for (number, writes) in generations.iter().enumerate() {
            let mut written = [false; 512];
            for &(start, count, seed) in writes {
                let range = pages(start, count).intersection(ram.pages());
                range.pages().for_each(|page| written[usize::try_from(page.0).unwrap()] = true);
                match seed {
                    0 => range.pages().for_each(|page| {
                        ram.write_slice(&[0; 4096], GuestAddress(page.offset())).unwrap();
                    }),
                    _ => fill(&ram, range, seed),
                }
            }
            let dirty: Vec<_> = ram.pages().pages()
                .filter(|page| written[usize::try_from(page.0).unwrap()]).map(PageIndex::alone).collect();
            let selection = if number == 0 { UNSERVED } else { Selection::Pages(&dirty) };
            let path = dir.path().join(number.to_string());
            let contents = write(&ram, selection, &File::create(&path).unwrap(), &options(threads)).unwrap();
            layers.push((path, contents));
        }
        for layer in &layers {
            verify_layer(layer).unwrap();
        }
        let stack = Stack::open(&layers, BYTES).unwrap();
        prop_assert!(read_stack(&stack, piece).unwrap() == memory(&ram));
    }
}

#[test]
fn one_flipped_bit_of_any_file_is_found_and_named() {
    for (layer, page) in
        [(0, 8), (0, 47), (1, 9), (1, 10), (1, 40)].map(|(layer, page)| (layer, PageIndex(page)))
    {
        let dir = tempfile::tempdir().unwrap();
        let (ram, layers) = chain(dir.path());
        assert!(read_stack(&Stack::open(&layers, BYTES).unwrap(), 64).unwrap() == memory(&ram));
        flip_a_bit(&layers[layer].0, page);
        assert_eq!(corrupt(&layers), page.alone());
        assert_eq!(differing(&layers[layer]), [page.alone()]);
        verify_layer(&layers[1 - layer]).unwrap();
    }
}

#[test]
fn what_is_not_seen_of_a_file_is_verified_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (_, layers) = chain(dir.path());
    // A page that the diff replaces, and one that nobody reads, as it was zero.
    flip_a_bit(&layers[0].0, PageIndex(9));
    flip_a_bit(&layers[0].0, PageIndex(300));
    read_stack(&Stack::open(&layers, BYTES).unwrap(), 64).unwrap();
    assert_eq!(differing(&layers[0]), [pages(9, 1), pages(300, 1)]);
}

#[test]
fn a_copy_that_made_holes_or_filled_them_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (ram, layers) = chain(dir.path());
    // Zeros that are a hole read as zeros still: nothing of the content is lost by either.
    punch(&layers[1].0, PageIndex(40));
    reopen(&layers[0].0).write_all_at(&[0; 4096 * 200], 100 * 4096).unwrap();
    layers.iter().for_each(|layer| verify_layer(layer).unwrap());
    assert!(read_stack(&Stack::open(&layers, BYTES).unwrap(), 64).unwrap() == memory(&ram));
    // What had content and is a hole is lost.
    punch(&layers[1].0, PageIndex(10));
    assert_eq!(corrupt(&layers), pages(10, 1));
    assert_eq!(differing(&layers[1]), [pages(10, 1)]);
}

#[test]
fn many_pages_that_differ_are_counted_and_some_named() {
    let dir = tempfile::tempdir().unwrap();
    let ram = ram_of(ANONYMOUS, 2);
    fill(&ram, pages(0, 200), 1);
    let path = dir.path().join("file");
    let contents = write(&ram, UNSERVED, &File::create(&path).unwrap(), &options(1)).unwrap();
    (0..100).for_each(|nth| flip_a_bit(&path, PageIndex(nth * 2)));
    flip_a_bit(&path, PageIndex(1));
    let error = verify_layer(&(path, contents)).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("101 pages of a memory file are not what was saved, pages 0..3 the first")
    );
    let VerifyError::Differ { ranges, count: 101 } = error else { panic!("{error}") };
    assert_eq!((ranges.len(), ranges[1]), (DIFFERING_MAX, pages(4, 1)));
}

#[test]
fn a_truncated_file_is_found_before_and_after_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (_, layers) = chain(dir.path());
    let stack = Stack::open(&layers, BYTES).unwrap();
    reopen(&layers[0].0).set_len(44 * 4096).unwrap();
    let error = read_stack(&stack, 64).unwrap_err();
    assert!(matches!(error, SourceError::Truncated { range } if range.start == PageIndex(44)), "{error}");
    let error = Stack::open(&layers, BYTES).unwrap_err();
    let is_size = matches!(&error, StackError::Image(ImageError::Size { path, .. }) if *path == layers[0].0);
    assert!(is_size, "{error}");
    let error = verify_layer(&layers[0]).unwrap_err();
    assert!(matches!(error, VerifyError::Size { actual: 180_224, expected: BYTES }), "{error}");
}

#[test]
fn files_of_another_memory_are_refused_before_anything_is_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut layers) = chain(dir.path());
    let huge = r#"{"pages":2251799813685247,"data":[],"sums":[]}"#;
    layers[1].1 = serde_json::from_str(huge).unwrap();
    let error = Stack::open(&layers, BYTES).unwrap_err();
    assert!(matches!(error, StackError::Contents(ContentsError::Other { base: 512, .. })), "{error}");
    assert!(matches!(Stack::open(&[], BYTES), Err(StackError::Image(ImageError::NoLayers))));
}

#[test]
fn verifying_can_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (_, layers) = chain(dir.path());
    let file = File::open(&layers[0].0).unwrap();
    let progress = Progress::default();
    verify(&file, &layers[0].1, Some(&progress)).unwrap();
    assert_eq!(progress.done_pages(), 512);
    progress.cancel();
    assert!(matches!(verify(&file, &layers[0].1, Some(&progress)), Err(VerifyError::Cancelled)));
}
