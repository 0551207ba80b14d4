//! A source that misbehaves as it is told to, for tests: late, in any order, in pieces, twice, short, uninvited, wrong,
//! or not at all.
//!
//! ```text
//!   submit ──▶ plan: pieces, each with a fate and a time ──▶ planned ── due, and not held ──▶ complete ──▶ sink
//!                                                                            ▲
//!   test ── ScriptedHandle: hold, release, how often was it asked ───────────┘
//! ```
//!
//! Invariants:
//!
//! - What chance decides follows from the seed and the requests; with delays, also from what is due by when.
//! - A page's content follows from its number and its seed: a test can check every byte of it.
//! - While answers are held back, none is given, whatever is due.

mod handle;
mod script;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::buffer::bytes_of;
use super::pattern::{Sequence, fill_range};
use super::{PageReply, PageRequest, PageSource, SourceError};
use crate::page::{PageIndex, PageRange};
pub use handle::ScriptedHandle;
pub use script::{Rest, Script, Trouble};

/// How many answers may be planned.
const PLANNED_MAX: usize = 65_536;

/// How pages are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Bytes,
    Flipped,
    Zero,
    Lost,
    Never,
}

/// An answer that will be given.
#[derive(Debug, Clone, Copy)]
struct Planned {
    range: PageRange,
    fate: Fate,
    due: Instant,
}

/// A source that follows a script.
#[derive(Debug)]
pub struct ScriptedSource {
    script: Script,
    pages: PageRange,
    chance: Sequence,
    planned: Vec<Planned>,
    /// How often each page in trouble was lost.
    lost: BTreeMap<PageIndex, u64>,
    handle: ScriptedHandle,
}

impl ScriptedSource {
    /// A source of `pages` pages that follows `script`, and a hold on it.
    ///
    /// # Errors
    ///
    /// When the host gives no timer.
    pub fn new(script: Script, pages: u64) -> io::Result<(Self, ScriptedHandle)> {
        let handle = ScriptedHandle::new()?;
        let source = Self {
            chance: Sequence::new(script.seed),
            script,
            pages: PageRange { start: PageIndex(0), count: pages },
            planned: Vec::new(),
            lost: BTreeMap::new(),
            handle: handle.clone(),
        };
        Ok((source, handle))
    }

    /// Plans the answers to one request.
    fn plan(&mut self, range: PageRange, now: Instant) {
        self.handle.count_request(range);
        let is_short = range.count > 1 && self.chance.happens(self.script.short_percent);
        let cut = if is_short { 1 + self.chance.below(range.count - 1) } else { range.count };
        let (answered, rest) = range.split_at(cut);
        let due = self.due(now);
        self.plan_pieces(answered, due);
        if !rest.is_empty() && self.script.rest == Rest::Later {
            let later = self.due(due);
            self.plan_pieces(rest, later);
        }
        if self.chance.happens(self.script.uninvited_percent) {
            let page = PageIndex(self.chance.below(self.pages.count));
            self.plan_fates(page.alone(), due);
        }
    }

    fn due(&mut self, from: Instant) -> Instant {
        let (least, most) = (*self.script.delay_ticks.start(), *self.script.delay_ticks.end());
        let ticks = least + self.chance.below(most.saturating_sub(least) + 1);
        from + self.script.tick * u32::try_from(ticks).unwrap_or(u32::MAX)
    }

    fn plan_pieces(&mut self, range: PageRange, due: Instant) {
        if !self.chance.happens(self.script.split_percent) {
            return self.plan_fates(range, due);
        }
        let mut rest = range;
        while !rest.is_empty() {
            // At least two pieces, where there are two pages.
            let most = if rest == range { (rest.count - 1).max(1) } else { rest.count };
            let (piece, later) = rest.split_at(1 + self.chance.below(most));
            self.plan_fates(piece, due);
            rest = later;
        }
    }

    /// Plans an answer for each run of pages with one fate.
    fn plan_fates(&mut self, range: PageRange, due: Instant) {
        let mut rest = range;
        while !rest.is_empty() {
            let fate = self.fate(rest.start);
            let same = 1 + rest.pages().skip(1).take_while(|page| self.fate(*page) == fate).count() as u64;
            let (run, later) = rest.split_at(same);
            rest = later;
            self.plan_answer(Planned { range: run, fate, due });
        }
    }

    fn plan_answer(&mut self, answer: Planned) {
        match answer.fate {
            Fate::Never => return,
            Fate::Lost => answer.range.pages().for_each(|page| *self.lost.entry(page).or_default() += 1),
            Fate::Bytes | Fate::Flipped | Fate::Zero => {}
        }
        self.planned.push(answer);
        if self.chance.happens(self.script.twice_percent) {
            let due = self.due(answer.due);
            self.planned.push(Planned { due, ..answer });
        }
    }

    fn fate(&self, page: PageIndex) -> Fate {
        let lost = self.lost.get(&page).copied().unwrap_or(0);
        match self.script.troubles.get(&page) {
            _ if !self.pages.contains(page) => Fate::Lost,
            Some(Trouble::Lost) => Fate::Lost,
            Some(Trouble::LostTimes(times)) if lost < *times => Fate::Lost,
            Some(Trouble::Never) => Fate::Never,
            Some(Trouble::FalseZero) => Fate::Zero,
            Some(Trouble::Flipped) => Fate::Flipped,
            Some(Trouble::LostTimes(_)) | None if (self.script.pattern)(page).is_some() => Fate::Bytes,
            Some(Trouble::LostTimes(_)) | None => Fate::Zero,
        }
    }

    /// The answer that is given next, of those that are due.
    fn take_due(&mut self, now: Instant) -> Option<Planned> {
        let due = self.planned.iter().enumerate().filter(|(_, planned)| planned.due <= now);
        let index = if self.script.reorders {
            let count = due.clone().count() as u64;
            due.map(|(index, _)| index).nth(usize::try_from(self.chance.below(count)).ok()?)?
        } else {
            due.min_by_key(|(index, planned)| (planned.due, *index))?.0
        };
        Some(self.planned.remove(index))
    }

    fn answer(&self, planned: Planned, sink: &mut dyn FnMut(PageReply<'_>)) {
        let range = planned.range;
        self.handle.count_answer();
        match planned.fate {
            Fate::Zero => sink(PageReply::Zero(range)),
            Fate::Lost => sink(PageReply::Lost(range, failure(range))),
            Fate::Never => {}
            Fate::Bytes | Fate::Flipped => {
                let mut bytes = vec![0; bytes_of(range.count)];
                fill_range(self.script.pattern, range, &mut bytes);
                if planned.fate == Fate::Flipped {
                    bytes.chunks_mut(bytes_of(1)).for_each(|page| page[0] ^= 1);
                }
                sink(PageReply::Bytes(range, &bytes));
            }
        }
    }

    fn check_alive(&self) -> Result<(), SourceError> {
        match self.script.dies_after {
            Some(answers) if self.handle.answers() >= answers => {
                Err(SourceError::Gone("its script ends here".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Has the timer fire when the next answer is due.
    fn arm(&self) {
        if let Some(due) = self.planned.iter().map(|planned| planned.due).min() {
            self.handle.fire_after(due.saturating_duration_since(Instant::now()));
        }
    }
}

fn failure(range: PageRange) -> SourceError {
    SourceError::Read { range, source: io::Error::other("the script says so") }
}

impl PageSource for ScriptedSource {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn submit(&mut self, requests: &[PageRequest]) -> Result<(), SourceError> {
        self.check_alive()?;
        if self.planned.len() + requests.len() > PLANNED_MAX {
            return Err(SourceError::QueueFull { queued: self.planned.len() });
        }
        let now = Instant::now();
        for request in requests.iter().filter(|request| !request.range.is_empty()) {
            self.plan(request.range, now);
        }
        self.arm();
        Ok(())
    }

    fn complete(&mut self, sink: &mut dyn FnMut(PageReply<'_>)) -> Result<(), SourceError> {
        self.handle.acknowledge();
        if self.handle.is_held() {
            // Releasing has the timer fire.
            return Ok(());
        }
        let now = Instant::now();
        self.check_alive()?;
        while let Some(planned) = self.take_due(now) {
            self.answer(planned, sink);
            self.check_alive()?;
        }
        self.arm();
        Ok(())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.handle.timer())
    }
}

#[cfg(test)]
mod tests;
