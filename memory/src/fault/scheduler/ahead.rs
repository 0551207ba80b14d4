//! The prefetched ranges that are with a source: disjoint, by their start, each with the tick at which it was asked for.

use std::collections::BTreeMap;

use crate::page::{PageIndex, PageRange};

#[derive(Debug, Clone, Copy)]
struct Asked {
    count: u64,
    since: u64,
}

#[derive(Debug, Default)]
pub(super) struct Ahead {
    runs: BTreeMap<PageIndex, Asked>,
    /// How many pages they are.
    pages: u64,
}

impl Ahead {
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Takes `run` up, of which no page may be in there.
    pub(super) fn insert(&mut self, run: PageRange, since: u64) {
        if !run.is_empty() {
            self.runs.insert(run.start, Asked { count: run.count, since });
            self.pages += run.count;
        }
    }

    /// The run that `page` is in, and since when.
    pub(super) fn run_at(&self, page: PageIndex) -> Option<(PageRange, u64)> {
        let (start, asked) = self.runs.range(..=page).next_back()?;
        let run = PageRange { start: *start, count: asked.count };
        run.contains(page).then_some((run, asked.since))
    }

    /// Where the first run starts that starts in `range`.
    pub(super) fn next_start(&self, range: PageRange) -> Option<PageIndex> {
        self.runs.range(range.start..range.end()).next().map(|(start, _)| *start)
    }

    /// Takes the pages of `range` out, and gives the runs of them that were in there, in order.
    pub(super) fn cut(&mut self, range: PageRange, mut sink: impl FnMut(PageRange)) {
        if self.is_empty() || range.is_empty() {
            return;
        }
        let before = self.run_at(range.start);
        if let Some((run, since)) = before {
            self.cut_run(run, since, range, &mut sink);
        }
        while let Some((start, asked)) = self.runs.range(range.start..range.end()).next() {
            let run = PageRange { start: *start, count: asked.count };
            self.cut_run(run, asked.since, range, &mut sink);
        }
    }

    fn cut_run(&mut self, run: PageRange, since: u64, range: PageRange, sink: &mut impl FnMut(PageRange)) {
        self.runs.remove(&run.start);
        self.pages -= run.count;
        self.insert(PageRange::between(run.start, range.start), since);
        self.insert(PageRange::between(range.end().max(run.start), run.end()), since);
        sink(run.intersection(range));
    }

    /// Takes out what was asked for at `latest` or before, and gives it; gives since when the oldest is that stays.
    pub(super) fn expire(&mut self, latest: u64, mut sink: impl FnMut(PageRange)) -> Option<u64> {
        let mut oldest: Option<u64> = None;
        let pages = &mut self.pages;
        self.runs.retain(|start, asked| {
            if asked.since > latest {
                oldest = Some(oldest.map_or(asked.since, |tick| tick.min(asked.since)));
                return true;
            }
            *pages -= asked.count;
            sink(PageRange { start: *start, count: asked.count });
            false
        });
        oldest
    }
}
