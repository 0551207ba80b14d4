//! Filling RAM with a pattern that tells every page from every other, and reading it back.

use crate::boot::{BootInfo, Ram};
use crate::{cpu, say};

/// Below this is the guest itself, and what the loader left.
const FIRST: u64 = 2 << 20;
const PAGE_BYTES: u64 = 4096;
const WORDS_PER_PAGE: u64 = PAGE_BYTES / 8;
const IDENTITY_MAPPED: u64 = 4 << 30;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const LARGE_PAGE_ENTRY: u64 = 0x87;
const HIGH_DIRECTORIES: u64 = 60;
const ENTRIES_PER_DIRECTORY: u64 = 512;

unsafe extern "C" {
    static mut page_directories_high: [u64; (HIGH_DIRECTORIES * ENTRIES_PER_DIRECTORY) as usize];
}

pub fn fill(boot: &BootInfo, mib: u64, seed: u64) {
    let start = cpu::cycles();
    let pages = pages(boot, mib).map(|page| write_page(page, seed)).count();
    say!("fill {} MiB in {} cycles", mib_of(pages), cpu::cycles() - start);
}

pub fn walk(boot: &BootInfo, mib: u64, seed: u64) {
    let start = cpu::cycles();
    let mut wrong = 0u64;
    let pages = pages(boot, mib)
        .inspect(|page| {
            if !page_matches(*page, seed) {
                wrong += 1;
                if wrong <= 8 {
                    say!("walk found a wrong page at {page:#x}");
                }
            }
        })
        .count();
    say!("walk {} MiB, {wrong} wrong pages, in {} cycles", mib_of(pages), cpu::cycles() - start);
}

/// What is done to a page that is touched.
#[derive(Clone, Copy)]
pub enum Access {
    Read,
    Write,
}

/// Touches every `stride`th page, in its first word: as fast as pages come.
pub fn touch(boot: &BootInfo, mib: u64, stride: u64, access: Access) {
    let start = cpu::cycles();
    let touched =
        pages(boot, mib).step_by(stride.max(1) as usize).map(|page| touch_page(page, access)).count();
    let (name, cycles) = match access {
        Access::Read => ("touch", cpu::cycles() - start),
        Access::Write => ("touch-write", cpu::cycles() - start),
    };
    say!("{name} {touched} pages in {cycles} cycles");
}

fn touch_page(page: u64, access: Access) {
    let word = page as *mut u64;
    match access {
        // SAFETY: as in `write_page`.
        Access::Read => {
            let _ = unsafe { word.read_volatile() };
        }
        // SAFETY: as above.
        Access::Write => unsafe { word.write_volatile(page) },
    }
}

/// Writes `count` pages that are spread evenly over all RAM, and then reads all of them back.
pub fn sample(boot: &BootInfo, count: u64) {
    let step = (pages(boot, u64::MAX >> 20).count() / count as usize).max(1);
    let sampled = || pages(boot, u64::MAX >> 20).step_by(step);
    sampled().for_each(|page| write_page(page, 0));
    let wrong = sampled().filter(|page| !page_matches(*page, 0)).count();
    say!(
        "sample {} pages up to {:#x}, {wrong} wrong pages",
        sampled().count(),
        sampled().last().unwrap_or(0)
    );
}

/// Writes `count` pages that are spread evenly over all RAM, and zeros where others are not zero.
pub fn keep(boot: &BootInfo, count: u64, seed: u64) {
    for (page, is_kept) in spread(boot, count) {
        if is_kept {
            write_page(page, seed);
        } else if !is_zero(page) {
            clear_page(page);
        }
    }
    say!("keep {count} pages");
}

/// Compares every word of all RAM with what `keep` has left.
pub fn kept(boot: &BootInfo, count: u64, seed: u64) {
    let is_right = |(page, is_kept)| if is_kept { page_matches(page, seed) } else { is_zero(page) };
    let wrong = spread(boot, count).filter(|page| !is_right(*page)).count();
    say!("kept {count} pages of {}, {wrong} wrong pages", spread(boot, count).count());
}

/// All pages, and whether each is one of `count` that are spread evenly over them.
fn spread(boot: &BootInfo, count: u64) -> impl Iterator<Item = (u64, bool)> + '_ {
    let all = || pages(boot, u64::MAX >> 20);
    let step = all().count().div_ceil(count.max(1) as usize).max(1);
    all().enumerate().map(move |(nth, page)| (page, nth % step == 0))
}

/// Says the 32 bits at an address: what a device wrote, or a register of it.
pub fn peek(address: u64) {
    assert!(address < IDENTITY_MAPPED, "peek looks below 4 GiB");
    // SAFETY: all below 4 GiB is mapped, and a read changes nothing of this program.
    let value = unsafe { (address as *const u32).read_volatile() };
    say!("peek {address:#x}: {value:#x}");
}

fn mib_of(pages: usize) -> u64 {
    pages as u64 * PAGE_BYTES >> 20
}

/// The addresses of the pages of the first `mib` MiB of RAM from 2 MiB up; fewer if there are fewer.
fn pages(boot: &BootInfo, mib: u64) -> impl Iterator<Item = u64> + '_ {
    map_up_to(boot.ram_end());
    boot.ram()
        .map(|ram| Ram { start: ram.start.max(FIRST), ..ram })
        .filter(|ram| ram.start < ram.end)
        .flat_map(|ram| (ram.start..ram.end & !(PAGE_BYTES - 1)).step_by(PAGE_BYTES as usize))
        .take((mib << 20 >> 12) as usize)
}

/// The addresses of the pages of the last `mib` MiB of RAM, as far as they are above 2 MiB.
pub fn last_pages(boot: &BootInfo, mib: u64) -> impl Iterator<Item = u64> + '_ {
    let all = pages(boot, u64::MAX >> 20).count();
    pages(boot, u64::MAX >> 20).skip(all.saturating_sub((mib << 20 >> 12) as usize))
}

/// Maps RAM above 4 GiB, as far as the page directories for it reach (64 GiB).
fn map_up_to(end: u64) {
    let entries = end.saturating_sub(IDENTITY_MAPPED).div_ceil(LARGE_PAGE_BYTES);
    for index in 0..entries.min(HIGH_DIRECTORIES * ENTRIES_PER_DIRECTORY) {
        let entry = (IDENTITY_MAPPED + index * LARGE_PAGE_BYTES) | LARGE_PAGE_ENTRY;
        // SAFETY: the index is within the directories, and an entry that becomes present needs no flush.
        unsafe { (&raw mut page_directories_high[index as usize]).write_volatile(entry) };
    }
}

/// The first word of a page's pattern: splitmix64 of its number and the seed.
fn first_word(page: u64, seed: u64) -> u64 {
    let mut word = (page / PAGE_BYTES ^ seed.rotate_left(32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

fn words(page: u64, seed: u64) -> impl Iterator<Item = (*mut u64, u64)> {
    let first = first_word(page, seed);
    (0..WORDS_PER_PAGE).map(move |index| {
        ((page + index * 8) as *mut u64, first.wrapping_add(index.wrapping_mul(0x2545_f491_4f6c_dd1d)))
    })
}

pub fn write_page(page: u64, seed: u64) {
    for (address, word) in words(page, seed) {
        // SAFETY: the map says that there is RAM, `map_up_to` mapped it, and nothing of the guest is above 2 MiB.
        unsafe { address.write_volatile(word) };
    }
}

pub fn page_matches(page: u64, seed: u64) -> bool {
    // SAFETY: as in `write_page`.
    words(page, seed).all(|(address, word)| unsafe { address.read_volatile() } == word)
}

fn clear_page(page: u64) {
    for (address, _) in words(page, 0) {
        // SAFETY: as in `write_page`.
        unsafe { address.write_volatile(0) };
    }
}

fn is_zero(page: u64) -> bool {
    // SAFETY: as in `write_page`.
    words(page, 0).all(|(address, _)| unsafe { address.read_volatile() } == 0)
}
