//! The files, written by real kernels to real files, against a model of the memory.

mod writing;

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::page::{PageIndex, PageRange};
use crate::ram::{Backing, GuestRam, RamRange, Sharing};

const ANONYMOUS: Backing = Backing::Anonymous { transparent_huge_pages: false };
const MEMFD: Backing = Backing::Memfd { transparent_huge_pages: false };
const UNSERVED: Selection<'_> = Selection::Full { unserved: true };

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

fn ram_of(backing: Backing, mib: u64) -> GuestRam {
    GuestRam::new(&[RamRange { gpa: GuestAddress(0), size_bytes: mib << 20 }], backing).unwrap()
}

/// A page whose first and last bytes tell which it is.
fn content(page: PageIndex, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..8].copy_from_slice(&page.0.to_le_bytes());
    bytes[4095] = seed;
    bytes
}

fn fill(ram: &GuestRam, range: PageRange, seed: u8) {
    for page in range.pages() {
        ram.write_slice(&content(page, seed), GuestAddress(page.offset())).unwrap();
    }
}

fn options(threads: usize) -> WriteOptions<'static> {
    WriteOptions { threads: NonZeroUsize::new(threads), progress: None }
}

fn read_file(file: &File, range: PageRange) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(range.bytes()).unwrap()];
    file.read_exact_at(&mut bytes, range.start.offset()).unwrap();
    bytes
}

fn data(contents: &Contents) -> Vec<PageRange> {
    contents.data().collect()
}
