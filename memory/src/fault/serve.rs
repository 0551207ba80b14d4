//! The loop of the thread that serves faults, and what it sleeps on.
//!
//! ```text
//!        ┌──────────────────────── wait: events, answers, orders, ticks ◀───────────────────┐
//!        ▼                                                                                  │
//!   read events ──▶ removals: mark ──▶ faults: want ──▶ ask the source ──▶ answers: place ──┘
//! ```

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::handler::Handler;
use super::order::{Inbox, Order};
use super::shared::Shared;
use super::write::WriteObserver;
use crate::source::{PageRequest, PageSource, SourceError};

/// How often in a row faults are found by spinning before all else is looked at.
const SPINS_MAX: u32 = 16;

/// How many orders are carried out in a row.
const ORDERS_MAX: usize = 64;

/// What the thread has.
pub(super) struct Server {
    pub(super) source: Box<dyn PageSource>,
    pub(super) inbox: Inbox,
    pub(super) handler: Handler,
    pub(super) requests: Vec<PageRequest>,
    /// How often in a row spinning has found a fault.
    pub(super) spins: u32,
    /// Why the source answers no more.
    pub(super) source_gone: Option<String>,
}

/// What the thread gives back at its end.
pub(super) struct Ended {
    pub(super) source: Box<dyn PageSource>,
    pub(super) observer: Option<Box<dyn WriteObserver>>,
}

/// What ended a wait.
#[derive(Debug, Clone, Copy)]
struct Ready {
    events: bool,
    orders: bool,
    answers: bool,
}

impl Ready {
    const NOTHING: Self = Self { events: false, orders: false, answers: false };
    const EVERYTHING: Self = Self { events: true, orders: true, answers: true };
}

/// Says that nobody serves faults any more, however the thread has ended.
struct Farewell(Arc<Shared>);

impl Drop for Farewell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail_all("the thread that serves faults has panicked");
        } else {
            self.0.stopped();
        }
    }
}

impl Server {
    /// Serves until it is told to stop, or cannot.
    pub(super) fn run(mut self) -> Ended {
        let shared = Arc::clone(&self.handler.shared);
        let _farewell = Farewell(Arc::clone(&shared));
        if let Err(error) = self.serve() {
            shared.fail_all(&format!("userfaultfd cannot be read any more: {error}"));
        }
        Ended { source: self.source, observer: self.handler.observer }
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut ready = Ready::EVERYTHING;
        loop {
            if ready.orders && self.obey() {
                return Ok(());
            }
            if ready.events {
                self.handler.read_events()?;
            }
            self.handler.take_faults();
            self.handler.expire();
            let is_asked = self.ask();
            if ready.answers || is_asked {
                self.take_answers();
            }
            self.handler.afterwards();
            ready = self.wait()?;
        }
    }

    /// Carries out what there is of orders; says whether to stop.
    fn obey(&mut self) -> bool {
        self.inbox.clear();
        for _ in 0..ORDERS_MAX {
            let Some(order) = self.inbox.next() else { return false };
            // Who asked may be gone by the time of the answer; then nobody wants to know.
            match order {
                Order::Prefetch(range) => self.handler.prefetch(range),
                Order::Protect(observer, answer) => drop(answer.send(self.handler.protect(observer))),
                Order::Unprotect(answer) => drop(answer.send(self.handler.unprotect())),
                Order::Observe(observer, answer) => drop(answer.send(self.handler.observe(observer))),
                Order::Unobserve(answer) => drop(answer.send(self.handler.unobserve())),
                Order::Settle(answer) => drop(answer.send(())),
                Order::Allow(range) => self.handler.allow(range),
                Order::Stop => return true,
            }
        }
        // Who waits for a page is looked at in between.
        self.inbox.again();
        false
    }

    /// Asks the source for what is wanted; says whether there was anything.
    fn ask(&mut self) -> bool {
        self.handler.requests(&mut self.requests);
        if self.requests.is_empty() {
            return false;
        }
        let result = match &self.source_gone {
            Some(cause) => Err(SourceError::Gone(cause.clone())),
            None => {
                let reading = &self.handler.shared.reading;
                reading.begin();
                let result = self.source.submit(&self.requests);
                reading.end();
                result
            }
        };
        match result {
            Ok(()) => {}
            Err(SourceError::QueueFull { .. }) => {
                self.requests.iter().for_each(|request| self.handler.put_off(request.range));
            }
            Err(error) => {
                self.requests.iter().for_each(|request| self.handler.not_had(request.range, &error));
            }
        }
        self.requests.clear();
        true
    }

    fn take_answers(&mut self) {
        if self.source_gone.is_some() {
            return;
        }
        let shared = Arc::clone(&self.handler.shared);
        shared.reading.begin();
        let result = self.source.complete(&mut |reply| self.handler.answered(reply));
        shared.reading.end();
        if let Err(error) = result {
            self.handler.source_failed(&error);
            self.source_gone = Some(error.to_string());
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self) -> io::Result<Ready> {
        let has_answers = self.source_gone.is_none() && self.source.has_more();
        if !self.handler.can_wait() {
            return Ok(Ready { answers: has_answers, ..Ready::NOTHING });
        }
        // A source that has answered at once leaves room to ask it for more, and tells of nothing later.
        let goes_on = has_answers || self.handler.scheduler.has_more();
        // Faults that come without a pause are no reason to hear of nothing else.
        if !goes_on && self.spins < SPINS_MAX && self.spin()? {
            self.spins += 1;
            return Ok(Ready::NOTHING);
        }
        self.spins = 0;
        let timeout = if goes_on { Some(Duration::ZERO) } else { self.handler.until_next_tick() };
        let ready = self.poll(timeout)?;
        Ok(Ready { answers: ready.answers || has_answers, ..ready })
    }

    /// Looks for faults for a bounded time; says whether there were any.
    fn spin(&mut self) -> io::Result<bool> {
        let spin = self.handler.whereabouts.spin();
        if spin.is_zero() || !self.handler.has_room() {
            return Ok(false);
        }
        let start = Instant::now();
        while start.elapsed() < spin {
            if self.handler.read_events()? > 0 {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        Ok(false)
    }

    fn poll(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        let readable = PollFlags::IN;
        let registered = self.handler.shared.registered.fd();
        // Faults that there is no room for stay with the kernel, and are no reason to wake up.
        let events = if self.handler.has_room() { readable } else { PollFlags::empty() };
        let orders = PollFd::from_borrowed_fd(self.inbox.fd(), readable);
        let source = self.source.readiness().filter(|_| self.source_gone.is_none());
        let mut fds = [
            PollFd::from_borrowed_fd(registered, events),
            orders.clone(),
            source.map_or(orders, |source| PollFd::from_borrowed_fd(source, readable)),
        ];
        let count = if source.is_some() { 3 } else { 2 };
        let timeout = timeout.map(|timeout| Timespec::try_from(timeout).unwrap_or_default());
        match poll(&mut fds[..count], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |index: usize| !fds[index].revents().is_empty();
        Ok(Ready { events: is_ready(0), orders: is_ready(1), answers: count == 3 && is_ready(2) })
    }
}
