//! What is to be placed of a working set, and in which order.

use super::{Chunk, WorkingSet};
use crate::page::{BASE_PAGES_PER_HUGE, PageRange};

/// From how many pages on a chunk of 2 MiB is placed whole. As a huge page it takes about 230 us to be had, read, checked
/// and moved in; a page of 4 KiB takes about 1.2 us to be read, checked and copied, so that 192 of them take as long. The
/// guest gets all of the chunk then, and the walks of its page tables are shorter.
pub const WHOLE_FROM_PAGES: u64 = 192;

/// How many ranges a plan has at most: fewer than may wait for the filler, who would forget the first.
pub const RANGES_MAX: usize = 2048;

impl WorkingSet {
    /// What is to be placed, in order: ranges that do not overlap. `moves_chunks` says whether whole chunks of 2 MiB can
    /// be moved in as huge pages.
    #[must_use]
    pub fn plan(&self, moves_chunks: bool) -> Vec<PageRange> {
        let mut plan = Vec::new();
        for chunk in &self.chunks {
            let inside = chunk.range().intersection(self.ram);
            let is_whole = inside.count == BASE_PAGES_PER_HUGE && chunk.count() >= WHOLE_FROM_PAGES;
            if moves_chunks && is_whole {
                push(&mut plan, inside);
            } else {
                runs(chunk).for_each(|run| push(&mut plan, run));
            }
        }
        plan.truncate(RANGES_MAX);
        plan
    }
}

/// Adds what is to be placed next, to the last range where it continues that.
fn push(plan: &mut Vec<PageRange>, next: PageRange) {
    match plan.last_mut() {
        Some(last) if last.end() == next.start => last.count += next.count,
        _ => plan.push(next),
    }
}

/// The runs of pages that are in a chunk.
fn runs(chunk: &Chunk) -> impl Iterator<Item = PageRange> {
    let mut pages = chunk.range().pages().filter(|page| chunk.has(*page)).peekable();
    std::iter::from_fn(move || {
        let mut run = pages.next()?.alone();
        while pages.next_if(|page| *page == run.end()).is_some() {
            run.count += 1;
        }
        Some(run)
    })
}
