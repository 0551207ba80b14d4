//! Serving the queue: from chains to operations, and from what has ended to the used ring.
//!
//! ```text
//!   event ──► begin what waits ──► submit ──► answer what has ended ──► announce ──► more has come? ──► leave
//!                    ▲                                                                   │ yes
//!                    └────────── until one queue full was begun: then by an event ◄──────┘
//! ```

use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk as blk;
use vm_memory::Bytes;

use super::Block;
use super::poll::LOOK_MAX;
use crate::virtio::block::CacheType;
use crate::virtio::block::disk::SECTOR_BYTES;
use crate::virtio::block::engine::{Ended, Operation, Ticket};
use crate::virtio::block::iovec::GuestIoVecs;
use crate::virtio::block::request::{Kind, Request};
use crate::virtio::chain::{Buffer, split_front, total_bytes};
use crate::virtio::ring::{Ring, RingError};

/// How long a turn goes on looking for requests that are not there yet.
const TURN_TIME_MAX: Duration = Duration::from_millis(1);

/// How long a turn goes on beginning requests: large ones on a slow disk take their time, and other devices wait.
const TURN_WORK_MAX: Duration = Duration::from_millis(5);

/// Why the queue was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Nothing waits.
    Empty,
    /// One queue full was served: it is the turn of others.
    Turn,
    /// The engine is full, and will tell when it is not.
    EngineFull,
    /// The limiter is empty, and will tell when it is not.
    Throttled,
}

impl Block {
    /// Waits for what is in flight and answers it.
    pub(super) fn finish_in_flight(&mut self) {
        let ended = self.engine.drain();
        self.with_ring(|device, ring| {
            ended.into_iter().try_for_each(|ended| device.answer_ended(ring, ended))?;
            ring.announce()
        });
    }

    /// Lets `work` have the ring, if the device is started. What the driver did wrong stops the device.
    pub(super) fn with_ring(&mut self, work: impl FnOnce(&mut Self, &mut Ring) -> Result<(), RingError>) {
        let Some(mut ring) = self.ring.take() else { return };
        if let Err(error) = work(self, &mut ring) {
            self.metrics.event_fails.inc();
            ring.interrupt().fail(&error);
        }
        self.ring = Some(ring);
    }

    /// Looks at the queue until it is empty, or something says to leave it.
    pub(super) fn serve(&mut self, ring: &mut Ring) -> Result<(), RingError> {
        if ring.interrupt().needs_reset() {
            return Ok(());
        }
        match self.serve_turn(ring)? {
            Left::Empty => self.poll.leave(Instant::now()),
            Left::Turn => self.wake_up(),
            Left::EngineFull => _ = self.metrics.io_engine_throttled_events.inc(),
            Left::Throttled => _ = self.metrics.rate_limiter_throttled_events.inc(),
        }
        self.metrics.remaining_reqs_count.inc_by(u64::from(ring.waiting()?));
        Ok(())
    }

    /// Begins and answers for as long as there is something to begin, at most one queue full of it: a driver that
    /// always has one more must not keep the thread from other devices.
    fn serve_turn(&mut self, ring: &mut Ring) -> Result<Left, RingError> {
        let (start, mut turn_left) = (Instant::now(), ring.size());
        if ring.waiting()? > 0 {
            self.poll.come_back(start);
        }
        loop {
            ring.disable_notification()?;
            let begun = self.begin_waiting(ring, &mut turn_left, start + TURN_WORK_MAX);
            // Even when the driver then did something wrong: what was begun has to end.
            self.advance(ring)?;
            match begun? {
                Left::Empty if start.elapsed() < TURN_TIME_MAX && self.look_for_more(ring)? => {}
                Left::Empty if ring.enable_notification()? => {}
                Left::EngineFull if self.engine.has_room() => {}
                left => return Ok(left),
            }
        }
    }

    /// Looks for a moment whether there is more to do, if there may well be. It takes no processor from anybody who
    /// has something to do, least of all from the vCPU that is about to make a request.
    fn look_for_more(&mut self, ring: &Ring) -> Result<bool, RingError> {
        if !self.poll.is_on() {
            return Ok(false);
        }
        let start = Instant::now();
        while start.elapsed() < LOOK_MAX {
            if ring.waiting()? > 0 || self.engine.has_ended() {
                self.poll.succeed();
                return Ok(true);
            }
            std::thread::yield_now();
        }
        self.poll.fail();
        Ok(false)
    }

    /// Begins what waits, but no more than `turn_left` requests, which it counts down, and at least one of them, but
    /// none after `deadline`.
    fn begin_waiting(
        &mut self,
        ring: &mut Ring,
        turn_left: &mut u16,
        deadline: Instant,
    ) -> Result<Left, RingError> {
        loop {
            if !self.engine.has_room() {
                return Ok(if ring.waiting()? == 0 { Left::Empty } else { Left::EngineFull });
            }
            let is_late = *turn_left < ring.size() && Instant::now() >= deadline;
            if *turn_left == 0 || is_late {
                return Ok(if ring.waiting()? == 0 { Left::Empty } else { Left::Turn });
            }
            let Some(chain) = ring.pop()? else { return Ok(Left::Empty) };
            let request = Request::parse(ring.memory(), chain)
                .inspect_err(|_| _ = self.metrics.invalid_reqs_count.inc())?;
            if !self.limiter.admit(1, request.disk_bytes()) {
                ring.unpop();
                return Ok(Left::Throttled);
            }
            *turn_left -= 1;
            self.execute(ring, request)?;
        }
    }

    /// Counts a queue event that found nothing to do.
    pub(super) fn count_if_empty(&mut self, ring: &mut Ring) -> Result<(), RingError> {
        if ring.waiting()? == 0 {
            self.metrics.no_avail_buffer.inc();
        }
        Ok(())
    }

    /// Has the queue looked at again, after what else is to be done.
    fn wake_up(&self) {
        if self.queue_events[0].write(1).is_err() {
            self.metrics.event_fails.inc();
        }
    }

    fn execute(&mut self, ring: &mut Ring, request: Request) -> Result<(), RingError> {
        let Request { kind, sector, data, status, head } = request;
        let bytes = total_bytes(&data);
        let ticket = Ticket { kind, head, status, bytes };
        let operation = match kind {
            Kind::Read | Kind::Write => match self.locate(kind, sector, bytes) {
                Some(offset) if kind == Kind::Read => {
                    Operation::Read(GuestIoVecs::new(ring.memory(), &data), offset)
                }
                Some(offset) => Operation::Write(GuestIoVecs::new(ring.memory(), &data), offset),
                None => return self.refuse(ring, ticket, blk::VIRTIO_BLK_S_IOERR),
            },
            Kind::Flush if self.cache == CacheType::Writeback => Operation::Flush,
            // Not offered, and so not needed. There is nothing to lose by saying so.
            Kind::Flush => return self.answer(ring, ticket, blk::VIRTIO_BLK_S_OK, 0),
            Kind::GetId => return self.give_id(ring, ticket, data),
            Kind::Unsupported(_) => return self.refuse(ring, ticket, blk::VIRTIO_BLK_S_UNSUPP),
        };
        match self.engine.begin(self.disk.file(), operation, ticket) {
            Some(ended) => self.answer_ended(ring, ended),
            None => Ok(()),
        }
    }

    /// Where a read or write is on the disk, in bytes, if it may be done.
    fn locate(&self, kind: Kind, sector: u64, bytes: u64) -> Option<u64> {
        let allowed = kind == Kind::Read || !self.disk.read_only();
        let whole = bytes.is_multiple_of(SECTOR_BYTES);
        self.disk.locate(sector, bytes).filter(|_| allowed && whole)
    }

    fn give_id(&mut self, ring: &mut Ring, ticket: Ticket, mut data: Vec<Buffer>) -> Result<(), RingError> {
        let id = self.disk.id();
        let Some(places) = split_front(&mut data, blk::VIRTIO_BLK_ID_BYTES) else {
            return self.refuse(ring, ticket, blk::VIRTIO_BLK_S_IOERR);
        };
        let mut rest = &id[..];
        for place in places {
            let (piece, after) = rest.split_at(place.len_usize());
            ring.memory().write_slice(piece, place.addr).expect("a chain's buffers are in RAM");
            rest = after;
        }
        self.answer(ring, ticket, blk::VIRTIO_BLK_S_OK, blk::VIRTIO_BLK_ID_BYTES)
    }

    /// Answers a request that cannot be done, whoever is at fault.
    fn refuse(&mut self, ring: &mut Ring, ticket: Ticket, status: u32) -> Result<(), RingError> {
        self.metrics.invalid_reqs_count.inc();
        self.answer(ring, ticket, status, 0)
    }

    /// Has the engine do what was begun, answers what has ended, and tells the driver of all answers so far. What the
    /// host has in memory ends at once: its answer is given here, and not in another round of the device loop.
    pub(super) fn advance(&mut self, ring: &mut Ring) -> Result<(), RingError> {
        loop {
            while let Some(ended) = self.engine.take_ended() {
                self.answer_ended(ring, ended)?;
            }
            // Not only what was just begun: an operation of which a part has ended goes on.
            if !self.engine.has_unsubmitted() {
                break;
            }
            if let Err(error) = self.engine.submit() {
                tracing::error!(%error, "cannot submit to io_uring: trying again");
                self.wake_up();
                break;
            }
        }
        ring.announce()
    }

    /// Answers a request whose operation has ended.
    fn answer_ended(&mut self, ring: &mut Ring, ended: Ended) -> Result<(), RingError> {
        let Ended { ticket, result } = ended;
        if let Err(error) = result {
            tracing::warn!(%error, path = %self.disk.path().display(), "a request to the drive failed");
            self.metrics.execute_fails.inc();
            return self.answer(ring, ticket, blk::VIRTIO_BLK_S_IOERR, 0);
        }
        let (count, bytes) = match ticket.kind {
            Kind::Read => (&self.metrics.read_count, Some(&self.metrics.read_bytes)),
            Kind::Write => (&self.metrics.write_count, Some(&self.metrics.write_bytes)),
            Kind::Flush | Kind::GetId | Kind::Unsupported(_) => (&self.metrics.flush_count, None),
        };
        count.inc();
        bytes.inspect(|counter| _ = counter.inc_by(ticket.bytes));
        let read = if ticket.kind == Kind::Read { ticket.bytes } else { 0 };
        // A chain has less than 4 GiB.
        self.answer(ring, ticket, blk::VIRTIO_BLK_S_OK, u32::try_from(read).unwrap_or(u32::MAX))
    }

    /// Writes the status, and gives the chain back with `written` bytes of data in it.
    fn answer(&self, ring: &mut Ring, ticket: Ticket, status: u32, written: u32) -> Result<(), RingError> {
        let status = u8::try_from(status).expect("statuses are small numbers");
        ring.memory().write_obj(status, ticket.status).expect("a chain's buffers are in RAM");
        ring.push_used(ticket.head, written.saturating_add(1))
    }
}
