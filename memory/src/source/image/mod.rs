//! A saved memory: a stack of files, each as long as the guest's RAM.
//!
//! ```text
//!   page        0   1   2   3   4   5
//!   diff  [1]   .   B   .   .   .   b       a hole of a diff: look below
//!   base  [0]   a   a   .   .   a   .       a hole of the base: zero
//!   content     a   B   0   0   a   b
//! ```
//!
//! Where the holes are is asked when the image is opened, not for each page, or is known to who opens it. So a page that became zero is *written*
//! to a diff, as zeros: were it left out, or its zeros punched out by a copy that makes files sparse, it would be what
//! it was below. [`Checked`](super::Checked) finds that out.
//!
//! Invariants:
//!
//! - Each file is as long as RAM when it is opened. What is cut off later is [`SourceError::Truncated`], never zero:
//!   a hole that was there at the opening is zero, and data is read with its length looked at.
//! - A page that is data in part is data.
//! - Of each file at most [`EXTENTS_MAX`] extents are kept; of one that has more, the file is asked. Those that are
//!   known from elsewhere are kept all.

mod error;
mod extents;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::SourceError;
use crate::page::{PageIndex, PageRange, PageSize};
pub use error::ImageError;
use extents::Extents;

/// How many files an image has at most.
pub const LAYERS_MAX: usize = 64;
/// How many extents are kept of each file: 1 MiB of them.
pub const EXTENTS_MAX: usize = 65_536;

/// Where the content of pages is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: they are zero.
    Zero,
    /// In the file of this number, counted from the base.
    Layer(usize),
}

/// Consecutive pages whose content is in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Which.
    pub range: PageRange,
    /// Where.
    pub origin: Origin,
}

/// One file of an image.
#[derive(Debug)]
struct Layer {
    path: PathBuf,
    file: File,
    /// What tells it from any other file, by whatever path.
    identity: (u64, u64),
    extents: Extents,
}

/// A saved memory.
#[derive(Debug)]
pub struct Image {
    layers: Vec<Layer>,
    pages: PageRange,
}

impl Image {
    /// Opens the files of a memory of `bytes`: the base, then the diffs over it in the order they were taken.
    ///
    /// # Errors
    ///
    /// [`ImageError`], with the file and what to do about it.
    pub fn open<P: AsRef<Path>>(paths: &[P], bytes: u64) -> Result<Self, ImageError> {
        Self::open_bounded(paths, bytes, EXTENTS_MAX)
    }

    /// The same of files whose data is known, so that nobody has to look for it: of each its runs, in order, inside of
    /// the memory and with a hole between each and the next. All of them are kept.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open).
    pub fn open_known<P: AsRef<Path>>(
        layers: &[(P, Vec<PageRange>)],
        bytes: u64,
    ) -> Result<Self, ImageError> {
        let paths: Vec<_> = layers.iter().map(|(path, _)| path).collect();
        Self::open_by(&paths, bytes, |layer, _, _| Ok(Extents::Known(layers[layer].1.clone())))
    }

    fn open_bounded<P: AsRef<Path>>(paths: &[P], bytes: u64, extents_max: usize) -> Result<Self, ImageError> {
        Self::open_by(paths, bytes, |_, file, pages| Extents::find(file, pages, extents_max))
    }

    fn open_by<P: AsRef<Path>>(
        paths: &[P],
        bytes: u64,
        find: impl Fn(usize, &File, PageRange) -> io::Result<Extents>,
    ) -> Result<Self, ImageError> {
        if paths.is_empty() {
            return Err(ImageError::NoLayers);
        }
        if paths.len() > LAYERS_MAX {
            return Err(ImageError::TooManyLayers { count: paths.len() });
        }
        if bytes == 0 || !PageSize::Base4K.divides(bytes) {
            return Err(ImageError::Memory { bytes });
        }
        let pages = PageRange::between(PageIndex(0), PageIndex::at_offset(bytes));
        let mut layers: Vec<Layer> = Vec::with_capacity(paths.len());
        for (index, path) in paths.iter().enumerate() {
            let layer = Layer::open(path.as_ref(), pages, |file| find(index, file, pages))?;
            if layers.iter().any(|other| other.identity == layer.identity) {
                return Err(ImageError::Twice { path: layer.path });
            }
            layers.push(layer);
        }
        Ok(Self { layers, pages })
    }

    /// All of its pages.
    #[must_use]
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// Says of all of `range`, in order, where its content is, in runs as long as they go.
    ///
    /// # Errors
    ///
    /// [`SourceError`] where the image ends before, or a file does not tell.
    pub fn locate(&self, range: PageRange, sink: &mut dyn FnMut(Run)) -> Result<(), SourceError> {
        let mut rest = range;
        while !rest.is_empty() {
            let run = self.first_run(rest)?;
            sink(run);
            rest = PageRange::between(run.range.end(), rest.end());
        }
        Ok(())
    }

    /// The first of the runs of `range`, which is not empty.
    ///
    /// # Errors
    ///
    /// [`SourceError`] where the image ends before, or a file does not tell.
    pub fn first_run(&self, range: PageRange) -> Result<Run, SourceError> {
        if self.pages.intersection(range) != range {
            return Err(SourceError::Truncated { range });
        }
        first_run(range, self.layers.len(), |index, range| {
            let layer = &self.layers[index];
            layer.extents.first_in(&layer.file, range)
        })
    }

    /// The files: where each is, and what tells it from any other that has its name later.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Path, (u64, u64))> {
        self.layers.iter().map(|layer| (layer.path.as_path(), layer.identity))
    }

    /// Reads data of a layer from the page cache. What it lacks is truncated: [`locate`](Self::locate) gave it as data.
    pub(super) fn read(&self, layer: usize, range: PageRange, into: &mut [u8]) -> Result<(), SourceError> {
        let file = &self.layers[layer].file;
        let mut done = 0;
        while done < into.len() {
            match file.read_at(&mut into[done..], range.start.offset() + done as u64) {
                Ok(0) => {
                    let missing = PageIndex::at_offset(range.start.offset() + done as u64);
                    return Err(SourceError::Truncated { range: PageRange::between(missing, range.end()) });
                }
                Ok(more) => done += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(SourceError::Read { range, source }),
            }
        }
        Ok(())
    }
}

impl Layer {
    fn open(
        path: &Path,
        pages: PageRange,
        find: impl FnOnce(&File) -> io::Result<Extents>,
    ) -> Result<Self, ImageError> {
        let path = path.to_owned();
        let host = |source| ImageError::Host { path: path.clone(), source };
        // Opening a pipe would wait for its writer.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let file = opened.map_err(|source| ImageError::Open { path: path.clone(), source })?;
        let metadata = file.metadata().map_err(host)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(ImageError::Kind { path });
        }
        check_length(&path, extents::length(&file).map_err(host)?, pages.bytes())?;
        let extents = find(&file).map_err(host)?;
        // What is cut off while the holes are looked for would be one.
        check_length(&path, extents::length(&file).map_err(host)?, pages.bytes())?;
        Ok(Self { file, identity: (metadata.dev(), metadata.ino()), extents, path })
    }
}

fn check_length(path: &Path, actual: u64, expected: u64) -> Result<(), ImageError> {
    let path = || path.to_owned();
    if actual == 0 {
        return Err(ImageError::Empty { path: path() });
    }
    if !PageSize::Base4K.divides(actual) {
        return Err(ImageError::Unaligned { path: path(), actual });
    }
    if actual != expected {
        return Err(ImageError::Size { path: path(), actual, expected });
    }
    Ok(())
}

/// The first run of `range` over `layers` layers, of which `data_in` gives the first data in a range. Pure but for it.
///
/// From the top down: a layer either has the first page, or says how far the layers below are to be seen through it.
fn first_run(
    range: PageRange,
    layers: usize,
    mut data_in: impl FnMut(usize, PageRange) -> Result<Option<PageRange>, SourceError>,
) -> Result<Run, SourceError> {
    let mut seen = range;
    for layer in (0..layers).rev() {
        match data_in(layer, seen)? {
            Some(data) if data.start == seen.start => {
                return Ok(Run { range: data, origin: Origin::Layer(layer) });
            }
            Some(data) => seen = PageRange::between(seen.start, data.start),
            None => {}
        }
    }
    Ok(Run { range: seen, origin: Origin::Zero })
}

#[cfg(test)]
mod tests;
