//! Where the thread that serves faults runs.
//!
//! A handler that sleeps on another processor than the one that faults is woken by an interrupt from there, and wakes
//! the faulting thread by another one: on virtual processors that is most of a fault's cost. On the faulting processor
//! itself it costs two switches of context. So the handler goes to where the faults come from, and stays there asleep;
//! nothing is burnt.
//!
//! Where faults come from several processors it can be at one only. Then it runs wherever there is room, and after
//! each batch looks for the next fault for a bounded time before it sleeps: while faults come, none finds it asleep.
//!
//! A thread that is not pinned may be put elsewhere by the very waking that it waits for: on an idle host the scheduler
//! prefers an idle processor to the one that the handler is on. Who has left a processor that it was followed to is not
//! followed again for a while, and for twice as long each time, but is taken for one that is scattered.
//!
//! ```text
//!   one processor faults:   handler pinned to it, sleeps at once
//!   several do:             handler anywhere, spins for a bounded time, then sleeps
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where the handler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locality {
    /// Where the faults come from, and spinning for so long where they come from several processors.
    Follow {
        /// How long to look for the next fault before sleeping.
        spin: Duration,
    },
    /// Wherever the host puts it; it sleeps as soon as there is nothing to do.
    Anywhere,
}

impl Default for Locality {
    fn default() -> Self {
        Self::Follow { spin: Duration::from_micros(50) }
    }
}

/// A thread's processor is looked up once in so many faults, for looking costs half as much as a fault, which the next
/// one waits for where both are on one processor. Where the last looks agree it is less often than once in a hundred:
/// the slowest hundredth of the faults is then as slow as without.
const FAULTS_PER_LOOK: u32 = 32;
const FAULTS_PER_LOOK_SETTLED: u32 = 128;
/// A fault of another thread than the last one's counts as so many, so that changes are seen soon.
const WEIGHT_OF_CHANGE: u32 = 4;
/// A thread that is not where it was followed to is looked for again after so many: each of its faults is dear.
const FAULTS_PER_LOOK_IN_DOUBT: u32 = 4;
/// How many looks count.
const LOOKS: usize = 8;
/// For how many looks nobody is followed after a thread has left where it was followed to, at first and at most.
const PATIENCE_MIN: usize = 16;
const PATIENCE_MAX: usize = 1024;
/// A processor is followed that so many of the last looks have seen.
const LOOKS_TO_FOLLOW: usize = 7;
/// For how many threads a file of `/proc` is kept open.
const THREADS_MAX: usize = 64;

/// What to do about where faults come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Advice {
    Follow(usize),
    Scatter,
    Stay,
}

/// The processors that the last looks have seen. Pure.
#[derive(Debug, Default)]
struct Looks {
    /// Empty before the first look, and full from then on.
    seen: VecDeque<usize>,
    followed: Option<usize>,
    /// How many looks have seen what is followed, since it is.
    stayed: usize,
    /// For how many looks nobody is followed.
    patience: usize,
    /// What that was last.
    patience_then: usize,
}

impl Looks {
    /// How many faults to leave out before the next look.
    fn interval(&self) -> u32 {
        let last = self.seen.back();
        if self.followed.is_some() && (self.stayed < 2 || self.followed.as_ref() != last) {
            return FAULTS_PER_LOOK_IN_DOUBT;
        }
        let agree = self.seen.iter().all(|seen| Some(seen) == last);
        if agree { FAULTS_PER_LOOK_SETTLED } else { FAULTS_PER_LOOK }
    }

    fn add(&mut self, processor: usize) -> Advice {
        if self.seen.is_empty() {
            // The first look is followed at once: most guests begin on one processor.
            self.seen.resize(LOOKS, processor);
        }
        self.seen.pop_front();
        self.seen.push_back(processor);
        let share = self.seen.iter().filter(|seen| **seen == processor).count();
        let is_followed = self.followed == Some(processor);
        self.patience = self.patience.saturating_sub(1);
        if share >= LOOKS_TO_FOLLOW && (is_followed || self.patience == 0) {
            self.stayed = if is_followed { self.stayed + 1 } else { 0 };
            if self.stayed >= LOOKS {
                self.patience_then = 0;
            }
            self.followed = Some(processor);
            Advice::Follow(processor)
        } else if share > LOOKS - LOOKS_TO_FOLLOW {
            if self.followed.take().is_some() {
                self.patience_then = (self.patience_then * 2).clamp(PATIENCE_MIN, PATIENCE_MAX);
                self.patience = self.patience_then;
            }
            Advice::Scatter
        } else {
            Advice::Stay
        }
    }
}

/// What the handler knows of where faults come from. It belongs to the handler's thread.
#[derive(Debug)]
pub(super) struct Whereabouts {
    /// How long to spin where faults are scattered; `None` where nothing is followed.
    spin: Option<Duration>,
    /// Where the thread may run at all.
    allowed: CpuSet,
    pinned: Option<usize>,
    is_scattered: bool,
    looks: Looks,
    faults_until_look: u32,
    last_thread: i32,
    stat_files: BTreeMap<i32, File>,
}

impl Whereabouts {
    /// For the calling thread.
    pub(super) fn new(locality: Locality) -> Self {
        let allowed = sched_getaffinity(None);
        let spin = match locality {
            Locality::Follow { spin } if allowed.is_ok() => Some(spin),
            Locality::Follow { .. } | Locality::Anywhere => None,
        };
        Self {
            spin,
            allowed: allowed.unwrap_or_default(),
            pinned: None,
            is_scattered: false,
            looks: Looks::default(),
            faults_until_look: 0,
            last_thread: 0,
            stat_files: BTreeMap::new(),
        }
    }

    /// A fault of `thread` was served. To be called once its page is there, so that nobody waits for what this costs.
    pub(super) fn served(&mut self, thread: i32) {
        if self.spin.is_none() {
            return;
        }
        let is_other = std::mem::replace(&mut self.last_thread, thread) != thread;
        let weight = if is_other { WEIGHT_OF_CHANGE } else { 1 };
        self.faults_until_look = self.faults_until_look.saturating_sub(weight);
        if self.faults_until_look > 0 {
            return;
        }
        self.faults_until_look = FAULTS_PER_LOOK;
        let Some(processor) = self.processor_of(thread) else { return };
        match self.looks.add(processor) {
            Advice::Follow(processor) => self.follow(processor),
            Advice::Scatter => self.scatter(),
            Advice::Stay => {}
        }
        self.faults_until_look = self.looks.interval();
    }

    /// How long to look for another fault before sleeping.
    pub(super) fn spin(&self) -> Duration {
        self.spin.filter(|_| self.is_scattered).unwrap_or_default()
    }

    fn follow(&mut self, processor: usize) {
        self.is_scattered = false;
        // Elsewhere the host, or whoever configured it, lets nobody run but the vCPU.
        if self.pinned == Some(processor) || processor >= CpuSet::MAX_CPU || !self.allowed.is_set(processor) {
            return;
        }
        let mut only = CpuSet::new();
        only.set(processor);
        if sched_setaffinity(None, &only).is_ok() {
            self.pinned = Some(processor);
        }
    }

    fn scatter(&mut self) {
        self.is_scattered = true;
        if self.pinned.is_some() && sched_setaffinity(None, &self.allowed).is_ok() {
            self.pinned = None;
        }
    }

    /// Where a thread runs, or ran last. A thread of another namespace is not known here.
    fn processor_of(&mut self, thread: i32) -> Option<usize> {
        if !self.stat_files.contains_key(&thread) {
            if self.stat_files.len() >= THREADS_MAX {
                self.stat_files.clear();
            }
            self.stat_files.insert(thread, File::open(format!("/proc/{thread}/stat")).ok()?);
        }
        let mut text = [0; 512];
        let length = self.stat_files.get(&thread)?.read_at(&mut text, 0);
        let processor = length.ok().and_then(|length| processor_in(text.get(..length)?));
        if processor.is_none() {
            // The thread has ended; its number may be another's next time.
            self.stat_files.remove(&thread);
        }
        processor
    }
}

/// Field 39 of `/proc/PID/stat`, see proc_pid_stat(5). Fields are counted from behind the name, which may hold anything.
fn processor_in(stat: &[u8]) -> Option<usize> {
    const FIRST_AFTER_NAME: usize = 3;
    const PROCESSOR: usize = 39;
    let text = std::str::from_utf8(&stat[stat.iter().rposition(|byte| *byte == b')')? + 1..]).ok()?;
    text.split_ascii_whitespace().nth(PROCESSOR - FIRST_AFTER_NAME)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_processor_is_followed_and_several_are_not() {
        let mut looks = Looks::default();
        assert_eq!(looks.add(3), Advice::Follow(3));
        assert_eq!(looks.add(5), Advice::Stay, "once is no trend");
        assert_eq!(looks.add(3), Advice::Follow(3));
        assert_eq!([5, 5].map(|processor| looks.add(processor)), [Advice::Scatter; 2]);
        let moved: Vec<_> = (0..PATIENCE_MIN).map(|_| looks.add(5)).collect();
        assert_eq!(moved.last(), Some(&Advice::Follow(5)), "who moves for good is followed: {moved:?}");
    }

    #[test]
    fn who_leaves_when_it_is_followed_is_followed_less_and_less() {
        let mut looks = Looks::default();
        // Always on the other one of two.
        let mut handler = 0;
        let mut follows = Vec::new();
        for nth in 0..4 * PATIENCE_MAX {
            if let Advice::Follow(processor) = looks.add(1 - handler)
                && processor != handler
            {
                handler = processor;
                follows.push(nth);
            }
        }
        let gaps: Vec<_> = follows.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.is_sorted() && gaps.len() <= 10, "{gaps:?}");
        assert!(gaps.last().is_some_and(|gap| *gap >= PATIENCE_MAX), "{gaps:?}");
        let stays: Vec<_> = (0..PATIENCE_MAX + 2 * LOOKS).map(|_| looks.add(handler)).collect();
        assert_eq!(stays.last(), Some(&Advice::Follow(handler)), "who stays in the end is followed");
        assert_eq!(looks.patience_then, 0, "and forgiven");
    }

    #[test]
    fn a_thread_is_found_where_it_was_pinned_and_followed() {
        let mut whereabouts = Whereabouts::new(Locality::default());
        let processor = (0..CpuSet::MAX_CPU).find(|index| whereabouts.allowed.is_set(*index)).unwrap();
        let mut only = CpuSet::new();
        only.set(processor);
        sched_setaffinity(None, &only).unwrap();
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        whereabouts.served(own);
        assert_eq!(whereabouts.pinned, Some(processor));
        assert_eq!(whereabouts.spin(), Duration::ZERO);
        whereabouts.scatter();
        assert_eq!((whereabouts.pinned, whereabouts.spin()), (None, Duration::from_micros(50)));
        assert_eq!(whereabouts.processor_of(i32::MAX), None);
    }

    #[test]
    fn names_with_parentheses_do_not_shift_fields() {
        let fields: Vec<_> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("17 (a) S (b c)) R {}", fields.join(" "));
        assert_eq!(processor_in(stat.as_bytes()), Some(39));
        assert_eq!(processor_in(b"17 (x"), None);
    }
}
