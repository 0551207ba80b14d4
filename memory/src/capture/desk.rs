//! Which chunk is read next, who waits for one to be read, and the buffers that those are read into.
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
//! - A chunk is in the queue of those that are wanted at most once, and is handed out as a cold one at most once.
//! - It is `Read` by one of those it was handed out to, and only that one's reading counts.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::fault::Verdict;
use crate::image::length_of;
use crate::page::{BASE_PAGES_PER_HUGE, PageIndex, PageRange, PageSize};

/// How many chunks may be read and not written yet: those that somebody waited for.
pub const BUFFERS_MAX: usize = 16;
/// How many buffers are there before anybody waits.
const BUFFERS_READY: usize = BUFFERS_MAX / 2;

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
    /// The first that was not handed out as a cold one.
    next: usize,
    /// How many are not read yet.
    unread: usize,
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
            queue: Mutex::new(Queue { unread: count, ..Queue::default() }),
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

    /// A chunk that somebody waits for, and a buffer for it. Waits for both; `None` when all are read, or it was stopped.
    pub(super) fn wait_for_wanted(&self) -> Option<(usize, Buffer)> {
        let mut queue = self.queue();
        while !queue.is_stopped && queue.unread > 0 {
            if let Some(wanted) = self.take_wanted(&mut queue) {
                return Some(wanted);
            }
            queue = self.has_work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// The same, if there is one at once.
    pub(super) fn wanted(&self) -> Option<(usize, Buffer)> {
        let mut queue = self.queue();
        if queue.is_stopped { None } else { self.take_wanted(&mut queue) }
    }

    fn take_wanted(&self, queue: &mut Queue) -> Option<(usize, Buffer)> {
        while queue.wanted.front().is_some_and(|chunk| self.state(*chunk) == State::Read) {
            queue.wanted.pop_front();
        }
        let has_buffer = !queue.free.is_empty() || queue.made < BUFFERS_MAX;
        let chunk = if has_buffer { queue.wanted.pop_front() } else { None };
        chunk.map(|chunk| (chunk, self.buffer(queue)))
    }

    /// The next chunk in order that is not read, whether somebody waits for it or not. `None` when all were handed out, or it
    /// was stopped.
    pub(super) fn cold(&self) -> Option<usize> {
        let mut queue = self.queue();
        while !queue.is_stopped && queue.next < self.states.len() {
            queue.next += 1;
            if self.state(queue.next - 1) != State::Read {
                return Some(queue.next - 1);
            }
        }
        None
    }

    /// Makes the buffers for chunks that somebody waits for, and has the host back them: whoever waits first does not
    /// wait for that.
    pub(super) fn make_buffers(&self) {
        let buffers: Vec<_> =
            (0..BUFFERS_READY).map(|_| vec![0xff; length_of(self.range(0))].into()).collect();
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

    /// `chunk` was read, and is to be unprotected next. Says whether that is so: else somebody else has read it before.
    pub(super) fn read(&self, chunk: usize) -> bool {
        if self.states[chunk].swap(State::Read as u8, SeqCst) == State::Read as u8 {
            return false;
        }
        // Whoever looked before that and is about to sleep holds it.
        let mut queue = self.queue();
        queue.unread -= 1;
        if queue.unread == 0 {
            self.has_work.notify_all();
        }
        drop(queue);
        self.was_read.notify_all();
        true
    }

    pub(super) fn give_back(&self, buffer: Buffer) {
        self.queue().free.push(buffer);
        self.has_work.notify_one();
    }

    /// Nothing more is read.
    pub(super) fn stop(&self) {
        self.queue().is_stopped = true;
        self.has_work.notify_all();
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
