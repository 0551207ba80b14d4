//! The files, written by real kernels to real files, against a model of the memory.

mod contents;
mod merging;
mod stacking;
mod writing;

use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

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

/// Opens a file that is there, to damage it.
fn reopen(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn flip_a_bit(path: &Path, page: PageIndex) {
    let file = reopen(path);
    let mut byte = [0];
    let offset = page.offset() + 2000;
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}

/// Makes a hole of a page, as a copy does that looks for zeros.
fn punch(path: &Path, page: PageIndex) {
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(reopen(path), flags, page.offset(), 4096).unwrap();
}

/// A base of 2 MiB and a diff over it: page 9 is changed, 10 is new, and 40 became zero.
fn chain(dir: &Path) -> (GuestRam, Vec<(PathBuf, Contents)>) {
    let ram = ram_of(ANONYMOUS, 2);
    fill(&ram, pages(8, 2), 1);
    fill(&ram, pages(40, 8), 2);
    let save = |name: &str, selection| {
        let path = dir.join(name);
        let contents = write(&ram, selection, &File::create(&path).unwrap(), &options(2)).unwrap();
        (path, contents)
    };
    let base = save("base", UNSERVED);
    fill(&ram, pages(9, 2), 3);
    ram.write_slice(&[0; 4096], GuestAddress(PageIndex(40).offset())).unwrap();
    let diff = save("diff", Selection::Pages(&[pages(9, 2), pages(40, 1)]));
    (ram, vec![base, diff])
}

fn memory(ram: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(ram.size_bytes()).unwrap()];
    ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}
