//! What a test holds of a scripted source that the engine has.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::page::{PageIndex, PageRange};

#[derive(Debug, Default)]
struct State {
    is_held: bool,
    asked: BTreeMap<PageIndex, u64>,
    requests: u64,
    answers: u64,
}

/// What the source and the test share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    asked: Condvar,
    /// Readable when an answer is due.
    timer: OwnedFd,
}

/// A hold on a scripted source.
#[derive(Debug, Clone)]
pub struct ScriptedHandle(Arc<Shared>);

impl ScriptedHandle {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let (state, asked) = (Mutex::default(), Condvar::new());
        Ok(Self(Arc::new(Shared { state, asked, timer })))
    }

    /// Holds all answers back from now on.
    pub fn hold(&self) {
        self.state().is_held = true;
    }

    /// Lets them go again.
    pub fn release(&self) {
        self.state().is_held = false;
        self.fire_after(Duration::ZERO);
    }

    /// How often `page` was asked for.
    #[must_use]
    pub fn asked(&self, page: PageIndex) -> u64 {
        self.state().asked.get(&page).copied().unwrap_or(0)
    }

    /// Every page that was asked for, and how often.
    #[must_use]
    pub fn all_asked(&self) -> BTreeMap<PageIndex, u64> {
        self.state().asked.clone()
    }

    /// How many requests there were.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.state().requests
    }

    /// How many answers were given.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.state().answers
    }

    /// Waits until `page` was asked for `times` times; says whether it was before `budget` was over.
    #[must_use]
    pub fn wait_until_asked(&self, page: PageIndex, times: u64, budget: Duration) -> bool {
        let deadline = Instant::now() + budget;
        let mut state = self.state();
        while state.asked.get(&page).is_none_or(|asked| *asked < times) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.0.asked.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    pub(super) fn count_request(&self, range: PageRange) {
        let mut state = self.state();
        state.requests += 1;
        for page in range.pages() {
            *state.asked.entry(page).or_default() += 1;
        }
        self.0.asked.notify_all();
    }

    pub(super) fn count_answer(&self) {
        self.state().answers += 1;
    }

    pub(super) fn is_held(&self) -> bool {
        self.state().is_held
    }

    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.0.timer.as_fd()
    }

    /// Has the timer be readable after `delay`.
    pub(super) fn fire_after(&self, delay: Duration) {
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A delay of nothing would stop the timer.
        let delay = delay.max(Duration::from_nanos(1));
        let value = Timespec::try_from(delay).expect("scripts have short delays");
        let armed = timerfd_settime(
            self.timer(),
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: never, it_value: value },
        );
        armed.expect("a timer can be set to any time");
    }

    pub(super) fn acknowledge(&self) {
        // It fails where the timer has not fired.
        let _ = rustix::io::read(self.timer(), &mut [0; 8]);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
