//! Which chunk is read next, who waits for one to be read, and the buffers that chunks are read into.
//!
//! ```text
//!   Open ◀──write── Armed ──write, discard──▶ Wanted
//!        ──begin──▶   │                         │
//!                     └────────▶ Read ◀─────────┘
//!   └── before ──┘ └───────── from the moment on ──────┘
//! ```
//!
//! Invariants:
//!
//! - `Read` is set before the chunk is unprotected, and `Wanted` is never left but to it: whoever was told to wait is woken.
//! - A chunk is in the queue of those that are wanted at most once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::fault::Verdict;
use crate::image::length_of;
use crate::page::{BASE_PAGES_PER_HUGE, PageIndex, PageRange, PageSize};

/// How many chunks may be read and not written yet.
pub const BUFFERS_MAX: usize = 16;
/// How many of them are kept for chunks that somebody waits for.
const RESERVED: usize = BUFFERS_MAX / 2;

/// What is known of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// It may be written unseen.
    Open,
    /// It is protected.
    Armed,
    /// Somebody waits for it to be read.
    Wanted,
    /// It was read.
    Read,
}

impl State {
    fn of(bits: u8) -> Self {
        match bits {
            0 => Self::Open,
            1 => Self::Armed,
            2 => Self::Wanted,
            _ => Self::Read,
        }
    }
}

/// What a chunk is read into.
pub(super) type Buffer = Box<[u8]>;

#[derive(Debug, Default)]
struct Queue {
    wanted: VecDeque<usize>,
    /// The first that may not have been read.
    next: usize,
    free: Vec<Buffer>,
    made: usize,
    /// How many discards are under way.
    discards: usize,
    is_stopped: bool,
}

/// What those who read, write, fault and discard know of each other.
#[derive(Debug)]
pub(super) struct Desk {
    pages: PageRange,
    states: Box<[AtomicU8]>,
    /// Whether pages of the chunk may have been placed, protected, after it was read.
    is_left: Box<[AtomicBool]>,
    is_begun: AtomicBool,
    is_over: AtomicBool,
    queue: Mutex<Queue>,
    has_work: Condvar,
    was_read: Condvar,
}

impl Desk {
    pub(super) fn new(pages: PageRange) -> Self {
        let count = usize::try_from(pages.count.div_ceil(BASE_PAGES_PER_HUGE)).expect("RAM fits addresses");
        Self {
            pages,
            states: (0..count).map(|_| AtomicU8::new(State::Open as u8)).collect(),
            is_left: (0..count).map(|_| AtomicBool::new(false)).collect(),
            is_begun: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            queue: Mutex::default(),
            has_work: Condvar::new(),
            was_read: Condvar::new(),
        }
    }

    pub(super) fn chunks(&self) -> std::ops::Range<usize> {
        0..self.states.len()
    }

    /// The pages of `chunk`; the last may be cut off by the end of the RAM.
    pub(super) fn range(&self, chunk: usize) -> PageRange {
        let start = PageIndex(chunk as u64 * BASE_PAGES_PER_HUGE);
        PageRange { start, count: BASE_PAGES_PER_HUGE }.intersection(self.pages)
    }

    /// The chunks that `range` touches.
    pub(super) fn touched(&self, range: PageRange) -> impl Iterator<Item = usize> + use<> {
        let range = range.intersection(self.pages);
        let chunks = range.widened(PageSize::Huge2M).wholes(PageSize::Huge2M);
        chunks.map(|chunk| usize::try_from(chunk.start.0 / BASE_PAGES_PER_HUGE).expect("one of them"))
    }

    pub(super) fn state(&self, chunk: usize) -> State {
        State::of(self.states[chunk].load(SeqCst))
    }

    fn replace(&self, chunk: usize, from: State, to: State) -> bool {
        self.states[chunk].compare_exchange(from as u8, to as u8, SeqCst, SeqCst).is_ok()
    }

    /// The chunk is about to be protected. Who writes it from now on is seen.
    pub(super) fn arm(&self, chunk: usize) {
        self.replace(chunk, State::Open, State::Armed);
    }

    /// The moment: all that is not open stays as it is from now on until it is read. Waits for discards under way.
    pub(super) fn begin(&self) {
        let waiting = self.was_read.wait_while(self.queue(), |queue| queue.discards > 0);
        let _queue = waiting.unwrap_or_else(PoisonError::into_inner);
        self.is_begun.store(true, SeqCst);
    }

    /// Somebody is about to write to `chunk`, which is protected.
    pub(super) fn write(&self, chunk: usize) -> Verdict {
        if self.is_over.load(SeqCst) {
            return Verdict::Allow;
        }
        if !self.is_begun.load(SeqCst) {
            self.open(chunk);
            return Verdict::Allow;
        }
        if self.want(chunk) { Verdict::Wait } else { Verdict::Allow }
    }

    fn open(&self, chunk: usize) {
        self.states[chunk].store(State::Open as u8, SeqCst);
    }

    /// Says whether `chunk` is yet to be read, and has that done soon.
    fn want(&self, chunk: usize) -> bool {
        loop {
            match self.state(chunk) {
                State::Read => return false,
                State::Wanted => return true,
                state => {
                    if self.replace(chunk, state, State::Wanted) {
                        self.queue().wanted.push_back(chunk);
                        self.has_work.notify_one();
                        return true;
                    }
                }
            }
        }
    }

    /// Pages are about to be thrown away: waits until they were read.
    pub(super) fn before_discard(&self, range: PageRange) {
        let mut queue = self.queue();
        queue.discards += 1;
        if !self.is_begun.load(SeqCst) {
            return self.touched(range).for_each(|chunk| self.open(chunk));
        }
        drop(queue);
        for chunk in self.touched(range) {
            if !self.want(chunk) {
                continue;
            }
            let is_unread = |_: &mut Queue| self.state(chunk) != State::Read && !self.is_over.load(SeqCst);
            drop(self.was_read.wait_while(self.queue(), is_unread).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// They are gone: whoever touches them is given zeros, protected.
    pub(super) fn after_discard(&self, range: PageRange) {
        let mut queue = self.queue();
        queue.discards -= 1;
        self.touched(range).for_each(|chunk| {
            self.leave(chunk);
            if !self.is_begun.load(SeqCst) {
                self.open(chunk);
            }
        });
        drop(queue);
        self.was_read.notify_all();
    }

    /// Pages of `chunk` may come protected after it was read.
    pub(super) fn leave(&self, chunk: usize) {
        self.is_left[chunk].store(true, SeqCst);
    }

    pub(super) fn is_left(&self, chunk: usize) -> bool {
        self.is_left[chunk].load(SeqCst)
    }

    /// The chunk to be read next, and a buffer for it; waits until there is a buffer. `None` when all were taken, or it
    /// was stopped.
    pub(super) fn next(&self) -> Option<(usize, Buffer)> {
        let mut queue = self.queue();
        loop {
            while queue.wanted.front().is_some_and(|chunk| self.state(*chunk) == State::Read) {
                queue.wanted.pop_front();
            }
            while queue.next < self.states.len() && self.state(queue.next) == State::Read {
                queue.next += 1;
            }
            if queue.is_stopped || queue.next == self.states.len() {
                return None;
            }
            let there = queue.free.len() + BUFFERS_MAX - queue.made;
            let chunk = match queue.wanted.front() {
                Some(_) if there > 0 => queue.wanted.pop_front(),
                None if there > RESERVED => Some(queue.next),
                _ => None,
            };
            if let Some(chunk) = chunk {
                return Some((chunk, self.buffer(&mut queue)));
            }
            queue = self.has_work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes the buffers that are kept for chunks that somebody waits for, and has the host back them: whoever waits first
    /// does not wait for that.
    pub(super) fn make_buffers(&self) {
        let buffers: Vec<_> = (0..RESERVED).map(|_| vec![0xff; length_of(self.range(0))].into()).collect();
        let mut queue = self.queue();
        queue.made += buffers.len();
        queue.free.extend(buffers);
    }

    /// The buffer that was used last, which is in a processor's cache yet.
    fn buffer(&self, queue: &mut Queue) -> Buffer {
        queue.free.pop().unwrap_or_else(|| {
            queue.made += 1;
            vec![0; length_of(self.range(0))].into_boxed_slice()
        })
    }

    /// `chunk` was read. It is to be unprotected next.
    pub(super) fn read(&self, chunk: usize) {
        self.states[chunk].store(State::Read as u8, SeqCst);
        // Whoever looked before that and is about to sleep holds it.
        drop(self.queue());
        self.was_read.notify_all();
    }

    pub(super) fn give_back(&self, buffer: Buffer) {
        self.queue().free.push(buffer);
        self.has_work.notify_one();
    }

    /// Nothing more is read.
    pub(super) fn stop(&self) {
        self.queue().is_stopped = true;
        self.has_work.notify_one();
    }

    /// Nobody is asked to wait any more.
    pub(super) fn end(&self) {
        self.is_over.store(true, SeqCst);
        drop(self.queue());
        self.was_read.notify_all();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
