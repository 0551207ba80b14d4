//! A memory file that is mapped as it is: looked at before, as nobody looks at its pages later.
//!
//! What the kernel maps is not checked page by page, which would read all of it. So it is told here whether a file can
//! be the snapshot's at all: by its kind, its length, and a few pages that are compared with what was saved.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use memory::image::Contents;
use memory::source::ImageError;
use memory::{PageIndex, PageSize};

/// How many pages are compared: a few reads, which a guest makes within its first millisecond anyhow.
const SAMPLED_PAGES: u64 = 16;

/// Why a file cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// It is none that a guest's memory is in.
    #[error(transparent)]
    File(#[from] ImageError),
    /// It is of another guest, or of another moment.
    #[error(
        "{} of the memory file {} is not what was saved: name the file that was saved with the state, or \
         take another copy of the snapshot", page.alone(), path.display()
    )]
    Other {
        /// The first page that differs.
        page: PageIndex,
        /// The file.
        path: PathBuf,
    },
}

/// Opens the memory file at `path`, which is to have `contents`.
///
/// # Errors
///
/// [`MapError`].
pub fn open(path: &Path, contents: &Contents) -> Result<File, MapError> {
    let (path, expected) = (path.to_owned(), contents.pages().bytes());
    let (file, metadata) = open_unwaited(&path)?;
    if !metadata.is_file() {
        return Err(ImageError::Kind { path }.into());
    }
    let actual = metadata.len();
    if actual == 0 {
        return Err(ImageError::Empty { path }.into());
    }
    if !PageSize::Base4K.divides(actual) {
        return Err(ImageError::Unaligned { path, actual }.into());
    }
    if actual != expected {
        return Err(ImageError::Size { path, actual, expected }.into());
    }
    match differing(&file, contents) {
        Ok(None) => Ok(file),
        Ok(Some(page)) => Err(MapError::Other { page, path }),
        Err(source) => Err(ImageError::Host { path, source }.into()),
    }
}

/// Opens what is at `path` for reading. Opening a pipe would wait for its writer without `O_NONBLOCK`.
pub(super) fn open_unwaited(path: &Path) -> Result<(File, Metadata), ImageError> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|source| ImageError::Open { path: path.to_owned(), source })?;
    let metadata = file.metadata().map_err(|source| ImageError::Host { path: path.to_owned(), source })?;
    Ok((file, metadata))
}

/// The first page of a sample that is not what was saved.
fn differing(file: &File, contents: &Contents) -> io::Result<Option<PageIndex>> {
    let mut bytes = vec![0; usize::try_from(PageIndex(1).offset()).expect("a page fits")];
    for (page, sum) in sample(contents) {
        file.read_exact_at(&mut bytes, page.offset())?;
        if crc32c::crc32c(&bytes) != sum {
            return Ok(Some(page));
        }
    }
    Ok(None)
}

/// Pages of data and their checksums, spread evenly over all there are.
fn sample(contents: &Contents) -> impl Iterator<Item = (PageIndex, u32)> {
    let step = contents.data_pages().div_ceil(SAMPLED_PAGES).max(1);
    let mut passed = 0;
    contents.summed().flat_map(move |(range, sums)| {
        let first = passed;
        passed += range.count;
        let wanted =
            (first.next_multiple_of(step)..passed).step_by(usize::try_from(step).unwrap_or(usize::MAX));
        wanted.map(move |nth| {
            let index = nth - first;
            (PageIndex(range.start.0 + index), sums[usize::try_from(index).expect("it is one of them")])
        })
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::json;
    use tempfile::NamedTempFile;

    use super::*;

    /// Pages of data at these places, each with a byte of its own, in a memory of 100 pages.
    fn memory(runs: &[(u64, u64)]) -> (NamedTempFile, Contents) {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(100 * 4096).unwrap();
        let (mut sums, mut next) = (Vec::new(), 0);
        for (gap, count) in runs {
            for page in next + gap..next + gap + count {
                let bytes = [u8::try_from(page).unwrap(); 4096];
                file.as_file().write_all_at(&bytes, page * 4096).unwrap();
                sums.push(crc32c::crc32c(&bytes));
            }
            next += gap + count;
        }
        let contents = json!({ "pages": 100, "data": runs, "sums": sums });
        (file, serde_json::from_value(contents).unwrap())
    }

    #[test]
    fn a_sample_is_spread_over_all_data() {
        let (_file, contents) = memory(&[(3, 1), (1, 90)]);
        let pages: Vec<_> = sample(&contents).map(|(page, _)| page.0).collect();
        assert_eq!(pages, [3, 10, 16, 22, 28, 34, 40, 46, 52, 58, 64, 70, 76, 82, 88, 94]);
        let (_file, contents) = memory(&[(7, 2)]);
        assert_eq!(sample(&contents).map(|(page, _)| page.0).collect::<Vec<_>>(), [7, 8]);
        assert_eq!(sample(&memory(&[]).1).count(), 0);
    }

    #[test]
    fn a_file_is_taken_for_what_its_pages_say() {
        let (file, contents) = memory(&[(3, 1), (1, 90)]);
        assert!(open(file.path(), &contents).is_ok());
        file.as_file().write_all_at(b"x", 16 * 4096).unwrap();
        assert!(matches!(open(file.path(), &contents), Err(MapError::Other { page: PageIndex(16), .. })));
        let mut appended = file.reopen().unwrap();
        file.as_file().set_len(99 * 4096).unwrap();
        assert!(matches!(open(file.path(), &contents), Err(MapError::File(ImageError::Size { .. }))));
        file.as_file().set_len(0).unwrap();
        assert!(matches!(open(file.path(), &contents), Err(MapError::File(ImageError::Empty { .. }))));
        appended.write_all(b"x").unwrap();
        assert!(matches!(open(file.path(), &contents), Err(MapError::File(ImageError::Unaligned { .. }))));
        let folder = file.path().parent().unwrap();
        assert!(matches!(open(folder, &contents), Err(MapError::File(ImageError::Kind { .. }))));
    }
}
