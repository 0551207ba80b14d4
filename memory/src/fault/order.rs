//! What an engine is told to do, by a message and a descriptor that wakes it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::write::WriteObserver;
use crate::page::PageRange;
use crate::uffd::Stop;

/// How many orders may wait to be heard.
const WAITING_MAX: usize = 1024;

/// How long to wait for room for one more: so many wait only where the thread hangs in its source.
const FULL_MAX: Duration = Duration::from_secs(5);
const FULL_POLL: Duration = Duration::from_millis(1);

/// What is asked of the fault thread.
pub(super) enum Order {
    /// Fetch pages that somebody may want soon.
    Prefetch(PageRange),
    /// Protect all memory, and ask the observer before writes from now on.
    Protect(Box<dyn WriteObserver>, Sender<Result<(), Stop>>),
    /// End protecting; gives the observer back.
    Unprotect(Sender<Option<Box<dyn WriteObserver>>>),
    /// Place pages protected and ask the observer before writes from now on, and protect nothing yet; refused where
    /// somebody is asked already.
    Observe(Box<dyn WriteObserver>, Sender<Result<(), Stop>>),
    /// Place pages unprotected and ask nobody from now on, and leave protected what is.
    Unobserve(Sender<Option<Box<dyn WriteObserver>>>),
    /// Say that what was being done is done.
    Settle(Sender<()>),
    /// Let pages be written.
    Allow(PageRange),
    /// End, and leave all who wait to the next.
    Stop,
}

/// The sending end.
#[derive(Debug)]
pub(super) struct Orders {
    sender: SyncSender<Order>,
    wake: OwnedFd,
}

impl Orders {
    /// Says whether somebody is there to hear. Waits for a bounded time where too many orders have not been heard yet;
    /// what is only a hint is dropped then.
    pub(super) fn send(&self, order: Order) -> bool {
        let is_heard = match order {
            hint @ Order::Prefetch(_) => self.sender.try_send(hint).is_ok(),
            order => self.send_patiently(order),
        };
        // A counter that is full wakes the thread all the same.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        is_heard
    }

    fn send_patiently(&self, mut order: Order) -> bool {
        let deadline = Instant::now() + FULL_MAX;
        loop {
            match self.sender.try_send(order) {
                Ok(()) => return true,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => order = back,
                Err(_) => return false,
            }
            thread::sleep(FULL_POLL);
        }
    }
}

/// The receiving end.
#[derive(Debug)]
pub(super) struct Inbox {
    receiver: Receiver<Order>,
    wake: OwnedFd,
}

impl Inbox {
    /// An order, if there is one. Where there will be none any more, that is to end.
    pub(super) fn next(&self) -> Option<Order> {
        match self.receiver.try_recv() {
            Ok(order) => Some(order),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Order::Stop),
        }
    }

    /// To be called before orders are looked for, or the next wake could be lost.
    pub(super) fn clear(&self) {
        // Empty is as good.
        let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
    }

    /// There may be more: the descriptor is to say so.
    pub(super) fn again(&self) {
        // A counter that is full says it already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Both ends.
pub(super) fn orders() -> io::Result<(Orders, Inbox)> {
    let (sender, receiver) = sync_channel(WAITING_MAX);
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let woken = wake.try_clone()?;
    Ok((Orders { sender, wake }, Inbox { receiver, wake: woken }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_by_nobody_any_more_ends() {
        let (orders, inbox) = orders().unwrap();
        assert!(orders.send(Order::Prefetch(crate::PageIndex(0).alone())) && inbox.next().is_some());
        assert!(inbox.next().is_none());
        drop(orders);
        assert!(matches!(inbox.next(), Some(Order::Stop)));
    }

    #[test]
    fn nobody_waits_for_good_until_there_is_room_for_an_order() {
        let (orders, _inbox) = orders().unwrap();
        let order = || Order::Allow(crate::PageIndex(0).alone());
        assert!((0..WAITING_MAX).all(|_| orders.send(order())));
        assert!(!orders.send(order()));
    }
}
