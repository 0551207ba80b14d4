//! Guest memory, what is to be in it, and threads that touch it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memory::source::{Content, Image, ImageReader, PageReader, SourceError};
use memory::{Backing, GuestRam, PageRange, RamRange};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use crate::bare::Mapped;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const PAGE_BYTES: u64 = 4096;
pub(crate) const PAGES_PER_MIB: u64 = MIB / PAGE_BYTES;
/// A file there is in the page cache, whatever disks the host has.
const FOLDER: &str = "/dev/shm";
pub(crate) const ANONYMOUS: Backing = Backing::Anonymous { transparent_huge_pages: false };
pub(crate) const HUGE: Backing = Backing::Anonymous { transparent_huge_pages: true };
pub(crate) const MEMFD: Backing = Backing::Memfd { transparent_huge_pages: false };

pub(crate) type Page = [u8; 4096];

/// RAM of `mib` MiB from address 0 on.
pub(crate) fn ram(backing: Backing, mib: u64) -> GuestRam {
    let range = RamRange { gpa: GuestAddress(0), size_bytes: mib * MIB };
    GuestRam::new(&[range], backing).expect("the host has that much memory")
}

/// The first word of page `number` of an [`image`](Memory::image), by which it is told from any other.
pub(crate) const fn word_of(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// The first word of a [`hot_page`].
pub(crate) const HOT_WORD: u64 = 0x5a5a_5a5a_5a5a_5a5a;

/// A page that is in the processor's cache.
pub(crate) const fn hot_page() -> Page {
    [0x5a; 4096]
}

/// Reads the same page for any: what a source costs is not in it.
pub(crate) struct HotReader(pub(crate) Page);

impl PageReader for HotReader {
    fn name(&self) -> &'static str {
        "hot"
    }

    fn read(&mut self, _range: PageRange, into: &mut [u8]) -> Result<Content, SourceError> {
        into.chunks_exact_mut(self.0.len()).for_each(|page| page.copy_from_slice(&self.0));
        Ok(Content::Bytes)
    }
}

/// A saved memory on tmpfs.
pub(crate) struct Memory {
    path: PathBuf,
    mib: u64,
    is_zero: bool,
    _folder: TempDir,
}

impl Memory {
    /// Of `mib` MiB, of which every page has content of its own.
    pub(crate) fn full(mib: u64) -> Self {
        let mut bytes = vec![0x33; usize::try_from(mib * MIB).expect("some MiB fit an address space")];
        for (number, page) in (0..).zip(bytes.chunks_exact_mut(4096)) {
            page[..8].copy_from_slice(&word_of(number).to_le_bytes());
        }
        Self::write(mib, false, |path| fs::write(path, bytes))
    }

    /// Of `mib` MiB, of which every page is zero.
    pub(crate) fn zero(mib: u64) -> Self {
        Self::write(mib, true, |path| fs::File::create(path)?.set_len(mib * MIB))
    }

    fn write(mib: u64, is_zero: bool, write: impl FnOnce(&PathBuf) -> std::io::Result<()>) -> Self {
        let folder = tempfile::tempdir_in(FOLDER).expect("/dev/shm can be written");
        let path = folder.path().join("memory");
        write(&path).expect("/dev/shm has room for a saved memory");
        Self { path, mib, is_zero, _folder: folder }
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.is_zero
    }

    pub(crate) fn file(&self) -> fs::File {
        fs::File::open(&self.path).expect("the image was just written")
    }

    pub(crate) fn map(&self, populates: bool) -> Mapped {
        Mapped::new(&self.file(), self.mib * MIB, populates)
    }

    pub(crate) fn reader(&self) -> ImageReader {
        let image = Image::open(&[&self.path], self.mib * MIB).expect("the image was just written");
        ImageReader::new(Arc::new(image))
    }
}

/// The numbers below `count`, each once, in an order that no prefetcher knows. `count` is a power of two.
pub(crate) fn shuffled(count: u64) -> Vec<u64> {
    assert!(count.is_power_of_two(), "an odd multiplier permutes the numbers below a power of two");
    (0..count).map(|number| number.wrapping_mul(0x9e37_79b1).wrapping_add(count / 3) % count).collect()
}

/// The first word of page `number`; whoever asks waits until it is there.
pub(crate) fn touch(ram: &GuestRam, number: u64) -> u64 {
    ram.read_obj(GuestAddress(number * PAGE_BYTES)).expect("the page is in the RAM")
}

/// Touches pages one after the other; how long each took goes to `latencies`, in nanoseconds. Gives whether each had
/// the word it was to have.
pub(crate) fn touch_each(
    ram: &GuestRam,
    pages: &[u64],
    expected: impl Fn(u64) -> u64,
    latencies: &mut Vec<u64>,
) -> bool {
    let mut is_right = true;
    for &page in pages {
        let start = Instant::now();
        let word = touch(ram, page);
        latencies.push(nanoseconds(start.elapsed()));
        is_right &= word == expected(page);
    }
    is_right
}

pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
