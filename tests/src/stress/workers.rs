//! Threads that read, write and throw pages away.

use memory::source::pattern::{Sequence, fill_page};
use memory::{PageIndex, PageRange};
use std::thread;
use std::time::Duration;
use vm_memory::Bytes;

use super::content::{Base, Content, PAGE, difference, is_wild, stamp_offset, wild_word};
use super::round::Round;
use super::setup::{address, alone};
use super::watch::Watched;

/// How many pages are touched again and again.
const HOT: u64 = 12;

/// A thread that works on memory until the round is over.
pub(super) struct Worker<'a> {
    pub(super) round: &'a Round,
    pub(super) chance: Sequence,
    watched: Watched,
}

impl<'a> Worker<'a> {
    /// One of the calling thread.
    pub(super) fn new(round: &'a Round, number: u64) -> Self {
        let chance = Sequence::new(round.scenario.seed ^ (number + 1).rotate_left(40));
        Self { round, chance, watched: round.watch.this_thread() }
    }

    /// Reads and writes. Every third thread only reads.
    pub(super) fn access(&mut self, number: u64) {
        let only_reads = number % 3 == 2;
        while !self.round.is_over() {
            let page = self.some_page();
            match self.chance.below(100) {
                0..45 => self.look(page),
                45..55 => self.walk(page),
                55..60 => self.check(page),
                _ if only_reads => self.look(page),
                60..75 => self.write_whole(page),
                _ => self.write_word(page),
            }
            if self.chance.happens(self.round.scenario.habits.idle_percent) {
                thread::sleep(Duration::from_micros(self.chance.below(500)));
            }
        }
    }

    /// Throws pages away.
    pub(super) fn discard(&mut self) {
        let (pages, granule) = (self.round.scenario.pages, self.round.scenario.granule());
        while !self.round.is_over() {
            let most = if self.chance.happens(10) { 600 } else { 20 };
            let count = (1 + self.chance.below(most)).next_multiple_of(granule);
            let start = self.some_page() / granule * granule;
            self.discard_range(PageRange { start: PageIndex(start), count: count.min(pages - start) });
            thread::sleep(Duration::from_micros(self.chance.below(3_000)));
        }
    }

    fn some_page(&mut self) -> u64 {
        let pages = self.round.scenario.pages;
        if self.chance.happens(30) {
            // Far from each other, the same for all threads.
            return self.chance.below(HOT) * 7_919 % pages;
        }
        self.chance.below(pages)
    }

    fn read(&self, page: u64) -> [u8; PAGE] {
        let mut bytes = [0; PAGE];
        let read = || self.round.ram.read_pages(alone(page), &mut bytes);
        self.watched.during("reads page", page, read).expect("the page is in the RAM");
        bytes
    }

    /// Reads without a lock, and compares where nobody changes the page.
    fn look(&mut self, page: u64) {
        let model = &self.round.model;
        let changes = model.changes(page);
        let content = model.content(page);
        let bytes = self.read(page);
        if self.round.scenario.is_wild(page) {
            if !is_wild(model.pattern, page, &bytes) {
                let expected = expected(self.round, page, Content::ORIGINAL);
                self.fail("wild", page, Content::ORIGINAL, &difference(&bytes, &expected));
            }
        } else if let Some(content) = content
            && changes.is_multiple_of(2)
            && model.changes(page) == changes
        {
            self.compare(page, content, &bytes);
        }
    }

    /// Reads while nobody changes the page.
    pub(super) fn check(&mut self, page: u64) {
        if self.round.scenario.is_wild(page) {
            return self.look(page);
        }
        let known = self.watched.during("waits for page", page, || self.round.model.hold(page));
        let bytes = self.read(page);
        self.compare(page, known.content, &bytes);
    }

    fn compare(&self, page: u64, content: Content, bytes: &[u8; PAGE]) {
        let expected = expected(self.round, page, content);
        if *bytes != expected {
            self.fail("known", page, content, &difference(bytes, &expected));
        }
    }

    fn fail(&self, what: &str, page: u64, content: Content, difference: &str) {
        let state = self.round.state_of(page);
        self.round.fail(&format!("{what} page {page} ({state}) should hold {content:?}: {difference}"));
    }

    fn walk(&mut self, page: u64) {
        let end = self.round.scenario.pages.min(page + 16 + self.chance.below(1200));
        let mut walk: Vec<u64> = (page..end).collect();
        if self.chance.happens(20) {
            walk.reverse();
        }
        walk.into_iter().take_while(|_| !self.round.is_over()).for_each(|page| self.look(page));
    }

    fn write_whole(&mut self, page: u64) {
        if self.round.scenario.is_wild(page) {
            return self.write_wildly(page);
        }
        let seed = self.chance.next_u64();
        let mut bytes = [0; PAGE];
        fill_page(PageIndex(page), seed, &mut bytes);
        self.write(page, 0, &bytes, |_| Content { base: Base::Seed(seed), stamp: None });
    }

    fn write_word(&mut self, page: u64) {
        if self.round.scenario.is_wild(page) {
            return self.write_wildly(page);
        }
        let stamp = self.chance.next_u64() | 1;
        let offset = stamp_offset(page);
        self.write(page, offset, &stamp.to_le_bytes(), |old| Content { stamp: Some(stamp), ..old });
    }

    fn write(&mut self, page: u64, offset: usize, bytes: &[u8], new: impl FnOnce(Content) -> Content) {
        let change = self.watched.during("waits to write page", page, || self.round.model.change(page));
        let content = new(change.content());
        self.watched.during("writes page", page, || self.write_bytes(page, offset, bytes));
        if let Err(wrong) = change.note_write(content) {
            self.round.fail(&format!("{wrong} ({})", self.round.state_of(page)));
        }
    }

    fn write_wildly(&mut self, page: u64) {
        let word = wild_word(page, self.chance.next_u64()).to_le_bytes();
        let offset = usize::try_from(self.chance.below(512) * 8).expect("it is in a page");
        self.watched.during("writes wild page", page, || self.write_bytes(page, offset, &word));
    }

    fn write_bytes(&self, page: u64, offset: usize, bytes: &[u8]) {
        let mut address = address(&self.round.ram, page);
        address.0 += offset as u64;
        self.round.ram.write_slice(bytes, address).expect("the page is in the RAM");
    }

    fn discard_range(&mut self, range: PageRange) {
        let round = self.round;
        let known = || {
            let tame = range.pages().map(|page| page.0).filter(|page| !round.scenario.is_wild(*page));
            tame.map(|page| round.model.change(page)).collect::<Vec<_>>()
        };
        let changes = self.watched.during("waits to throw away page", range.start.0, known);
        let discard = || round.ram.discard(range);
        match self.watched.during("throws away page", range.start.0, discard) {
            Ok(()) => changes.into_iter().for_each(super::model::Change::note_discard),
            Err(error) => round.fail(&format!("{range} could not be discarded: {error}")),
        }
    }
}

fn expected(round: &Round, page: u64, content: Content) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    content.bytes(round.model.pattern, page, &mut bytes);
    bytes
}
