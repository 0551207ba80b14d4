//! Two queues, of which the one of demand goes first.

use std::collections::VecDeque;

use super::{PageRequest, Priority, QUEUED_REQUESTS_MAX, SourceError};
use crate::page::PageRange;

#[derive(Debug)]
pub(super) struct Lanes<T> {
    demand: VecDeque<T>,
    prefetch: VecDeque<T>,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        // Enough that a single fault never allocates.
        Self { demand: VecDeque::with_capacity(64), prefetch: VecDeque::with_capacity(64) }
    }
}

impl<T> Lanes<T> {
    fn lane(&mut self, priority: Priority) -> &mut VecDeque<T> {
        match priority {
            Priority::Demand => &mut self.demand,
            Priority::Prefetch => &mut self.prefetch,
        }
    }

    pub(super) fn push(&mut self, priority: Priority, item: T) {
        self.lane(priority).push_back(item);
    }

    /// Puts back what `pop` gave, or what is left of it.
    pub(super) fn unpop(&mut self, priority: Priority, item: T) {
        self.lane(priority).push_front(item);
    }

    pub(super) fn pop(&mut self, priority: Priority) -> Option<T> {
        self.lane(priority).pop_front()
    }

    pub(super) fn len(&self) -> usize {
        self.demand.len() + self.prefetch.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Lanes<PageRange> {
    /// Queues a batch, whole or not at all.
    pub(super) fn queue(&mut self, requests: &[PageRequest]) -> Result<(), SourceError> {
        if self.len() + requests.len() > QUEUED_REQUESTS_MAX {
            return Err(SourceError::QueueFull { queued: self.len() });
        }
        for request in requests.iter().filter(|request| !request.range.is_empty()) {
            self.push(request.priority, request.range);
        }
        Ok(())
    }
}
