use std::fs::{self, OpenOptions};

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::source::buffer::bytes_of;

const PAGES: u64 = 48;

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

/// Which pages a layer has data of.
type Data = Vec<bool>;

/// The runs of a range by the definition: each page by itself, neighbours of one origin joined.
fn model(layers: &[Data], range: PageRange) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for page in range.pages() {
        let index = usize::try_from(page.0).unwrap();
        let origin = layers.iter().rposition(|data| data[index]).map_or(Origin::Zero, Origin::Layer);
        match runs.last_mut() {
            Some(last) if last.origin == origin => last.range.count += 1,
            _ => runs.push(Run { range: page.alone(), origin }),
        }
    }
    runs
}

fn extents_of(data: &Data) -> Vec<PageRange> {
    let runs = model(std::slice::from_ref(data), pages(0, PAGES));
    runs.into_iter().filter(|run| run.origin == Origin::Layer(0)).map(|run| run.range).collect()
}

/// A file of `data`, whose pages are `value` and their number.
fn write_layer(dir: &TempDir, name: &str, value: u8, data: &Data) -> PathBuf {
    let path = dir.path().join(name);
    let file = fs::File::create(&path).unwrap();
    file.set_len(PAGES * 4096).unwrap();
    for page in extents_of(data).into_iter().flat_map(PageRange::pages) {
        let mut bytes = vec![value; 4096];
        bytes[0] = u8::try_from(page.0).unwrap();
        file.write_all_at(&bytes, page.offset()).unwrap();
    }
    path
}

fn write_stack(dir: &TempDir, layers: &[Data]) -> Vec<PathBuf> {
    let write =
        |(index, data)| write_layer(dir, &format!("{index}"), 100 + u8::try_from(index).unwrap(), data);
    layers.iter().enumerate().map(write).collect()
}

fn located(image: &Image, range: PageRange) -> Vec<Run> {
    let mut runs = Vec::new();
    image.locate(range, &mut |run| runs.push(run)).unwrap();
    runs
}

fn layers() -> impl Strategy<Value = Vec<Data>> {
    // Long stretches as well as single pages.
    let stretch = (any::<bool>(), 1_usize..12);
    let data = vec(stretch, 48).prop_map(|stretches| {
        let pages = stretches.into_iter().flat_map(|(is_data, pages)| std::iter::repeat_n(is_data, pages));
        pages.take(usize::try_from(PAGES).unwrap()).collect::<Data>()
    });
    vec(data, 1..5)
}

fn range() -> impl Strategy<Value = PageRange> {
    (0..PAGES, 0..=PAGES).prop_map(|(start, count)| pages(start, count.min(PAGES - start)))
}

proptest! {
    #[test]
    fn runs_are_what_each_page_by_itself_says(layers in layers(), range in range()) {
        let known: Vec<_> = layers.iter().map(extents_of).collect();
        let mut runs = Vec::new();
        let mut rest = range;
        while !rest.is_empty() {
            let look = |layer: usize, range| Ok(extents::first_known(&known[layer], range));
            runs.push(first_run(rest, layers.len(), look).unwrap());
            rest = PageRange::between(runs.last().unwrap().range.end(), rest.end());
        }
        prop_assert_eq!(runs, model(&layers, range));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn files_are_seen_as_they_were_written(layers in layers(), range in range()) {
        let dir = tempfile::tempdir().unwrap();
        let paths = write_stack(&dir, &layers);
        for extents_max in [EXTENTS_MAX, 2] {
            let image = Image::open_bounded(&paths, PAGES * 4096, extents_max).unwrap();
            prop_assert_eq!(located(&image, range), model(&layers, range));
        }
    }
}

#[test]
fn of_a_file_in_too_many_pieces_each_lookup_asks() {
    let dir = tempfile::tempdir().unwrap();
    let striped: Data = (0..PAGES).map(|page| page % 2 == 0).collect();
    let paths = write_stack(&dir, &[striped]);
    let image = Image::open_bounded(&paths, PAGES * 4096, 4).unwrap();
    assert_eq!(image.layers[0].extents, Extents::Asked);
    assert_eq!(image.first_run(pages(3, 9)).unwrap(), Run { range: pages(3, 1), origin: Origin::Zero });
    // What is cut off from such a file must not pass for a hole.
    OpenOptions::new().write(true).open(&paths[0]).unwrap().set_len(10 * 4096).unwrap();
    assert_eq!(image.first_run(pages(8, 1)).unwrap().origin, Origin::Layer(0));
    for lost in [pages(11, 1), pages(30, 2), pages(9, 2)] {
        let error = image.first_run(lost).unwrap_err();
        assert!(matches!(error, SourceError::Truncated { range } if range == lost), "{error}");
    }
}

#[test]
fn a_page_that_is_data_in_part_is_data() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_layer(&dir, "base", 1, &vec![false; 48]);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[7], 5 * 4096 + 4095).unwrap();
    file.write_all_at(&[7], 9 * 4096).unwrap();
    let image = Image::open(&[path], PAGES * 4096).unwrap();
    let data: Vec<_> =
        located(&image, pages(0, PAGES)).into_iter().filter(|run| run.origin != Origin::Zero).collect();
    assert_eq!(data.iter().map(|run| run.range).collect::<Vec<_>>(), [pages(5, 1), pages(9, 1)]);
}

#[test]
fn what_is_past_the_end_is_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let paths = write_stack(&dir, &[vec![true; 48]]);
    let image = Image::open(&paths, PAGES * 4096).unwrap();
    assert_eq!(image.pages(), pages(0, PAGES));
    for range in [pages(PAGES, 1), pages(PAGES - 1, 2)] {
        assert!(matches!(image.first_run(range), Err(SourceError::Truncated { .. })));
    }
}

#[test]
fn what_is_cut_off_after_the_opening_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let paths = write_stack(&dir, &[vec![true; 48]]);
    let image = Image::open(&paths, PAGES * 4096).unwrap();
    // In the middle of page 20.
    OpenOptions::new().write(true).open(&paths[0]).unwrap().set_len(20 * 4096 + 100).unwrap();
    let mut into = vec![0; bytes_of(4)];
    let error = image.read(0, pages(18, 4), &mut into).unwrap_err();
    assert!(matches!(error, SourceError::Truncated { range } if range == pages(20, 2)), "{error}");
    image.read(0, pages(16, 4), &mut into).unwrap();
}

#[test]
fn each_thing_in_the_way_is_said_with_the_file_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let good = write_layer(&dir, "good", 1, &vec![true; 48]);
    let file = |name: &str, bytes: u64| {
        let path = dir.path().join(name);
        fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    };
    let open = |paths: &[&Path]| Image::open(paths, PAGES * 4096).unwrap_err();
    let refused = |path: &Path| {
        let error = open(&[&good, path]);
        assert!(error.to_string().contains(&*path.to_string_lossy()), "{error} names the file");
        error
    };
    assert!(matches!(refused(&dir.path().join("missing")), ImageError::Open { .. }));
    assert!(matches!(refused(dir.path()), ImageError::Kind { .. }));
    assert!(matches!(refused(Path::new("/dev/null")), ImageError::Kind { .. }));
    assert!(matches!(refused(&file("empty", 0)), ImageError::Empty { .. }));
    assert!(matches!(refused(&file("odd", 4097)), ImageError::Unaligned { actual: 4097, .. }));
    assert!(matches!(
        refused(&file("short", 4096)),
        ImageError::Size { actual: 4096, expected: 196_608, .. }
    ));
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&good, &link).unwrap();
    assert!(matches!(refused(&link), ImageError::Twice { .. }));
    assert!(matches!(open(&[]), ImageError::NoLayers));
    assert!(matches!(open(&[good.as_path(); 65]), ImageError::TooManyLayers { count: 65 }));
    assert!(matches!(Image::open(&[&good], 100), Err(ImageError::Memory { bytes: 100 })));
}

#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    assert!(matches!(Image::open(&[&pipe], 4096), Err(ImageError::Kind { .. })));
}
