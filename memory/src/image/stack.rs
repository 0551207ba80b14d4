//! A base and its diffs, as one memory.

use std::path::PathBuf;
use std::sync::Arc;

use super::contents::{Contents, ContentsError};
use super::error::StackError;
use super::file::length_of;
use crate::page::{PageIndex, PageRange};
use crate::source::{Checked, Checksums, Image, ImageReader};

/// Memory files that are one memory: a base, and the diffs over it.
#[derive(Debug)]
pub struct Stack {
    image: Arc<Image>,
    contents: Contents,
    checksums: Checksums,
}

impl Stack {
    /// Opens the files of a memory of `bytes`: the base, then the diffs over it in the order they were taken, with what
    /// each of them holds. The files are not read; who reads from the stack is told of a page that is not what was
    /// saved.
    ///
    /// It keeps 16 bytes for each run of data, and 4 for each page of the memory.
    ///
    /// # Errors
    ///
    /// [`StackError`], with the file and what to do about it.
    pub fn open(layers: &[(PathBuf, Contents)], bytes: u64) -> Result<Self, StackError> {
        let pages = PageRange::between(PageIndex(0), PageIndex::at_offset(bytes));
        for (_, contents) in layers {
            if contents.pages() != pages {
                let other = contents.pages().count;
                return Err(ContentsError::Other { base: pages.count, other }.into());
            }
        }
        let known: Vec<_> =
            layers.iter().map(|(path, contents)| (path, contents.data().collect::<Vec<_>>())).collect();
        let image = Image::open_known(&known, bytes)?;
        let mut contents = Contents::empty(pages);
        for (_, layer) in layers {
            contents = contents.under(layer)?;
        }
        Ok(Self { image: Arc::new(image), checksums: checksums(&contents), contents })
    }

    /// Where which page is.
    #[must_use]
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// The checksum of each page, in chunks of one: those of holes, too.
    #[must_use]
    pub fn checksums(&self) -> &Checksums {
        &self.checksums
    }

    /// What one file would hold that is all of them.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// A reader of the memory, which checks every page that it reads.
    #[must_use]
    pub fn reader(&self) -> Checked<ImageReader> {
        Checked::new(ImageReader::new(Arc::clone(&self.image)), self.checksums.clone())
    }
}

fn checksums(contents: &Contents) -> Checksums {
    let pages = contents.pages();
    let zero = crc32c::crc32c(&vec![0; length_of(PageIndex(0).alone())]);
    let index = |page: PageIndex| usize::try_from(page.0).expect("a memory's pages are counted in memory");
    let mut all = vec![zero; index(pages.end())];
    for (range, sums) in contents.summed() {
        all[index(range.start)..index(range.end())].copy_from_slice(sums);
    }
    Checksums::from_sums(pages.count, 1, all).expect("there is one for each page")
}
