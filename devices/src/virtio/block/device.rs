//! The block device: its queue, its disk, its engine and its limiter, brought together.

mod poll;
mod serve;

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use prometheus_client::metrics::counter::Counter;
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::disk::{Disk, SECTOR_BYTES};
use super::engine::Engine;
use super::{BLOCK_STATE_VERSION, BlockConfig, BlockError, BlockState, CacheType};
use crate::limiter::{RateLimiter, RateLimiterConfig};
use crate::metrics::BlockMetrics;
use crate::virtio::ring::Ring;
use crate::virtio::{Activation, ConfigSpace, StartError, VirtioDevice, feature};
use poll::Poll;

/// The size of the queue, as Firecracker has it.
const QUEUE_SIZES: [u16; 1] = [256];

/// How many buffers of data a request has at most: the queue's size, less the header and the status.
const SEGMENTS_MAX: u32 = 254;

/// The block device. It is a subscriber of the device loop.
#[derive(Debug)]
pub struct Block {
    // Before the disk: the engine drains when it is dropped, and the disk is closed then.
    engine: Engine,
    disk: Disk,
    cache: CacheType,
    limiter: RateLimiter,
    metrics: BlockMetrics,
    queue_events: [EventFd; 1],
    config: Arc<ConfigSpace>,
    ring: Option<Ring>,
    /// Whether the configuration changed while there was nobody to be told.
    config_unannounced: bool,
    poll: Poll,
}

impl Block {
    /// A device for the disk that `config` names, which is opened and locked.
    ///
    /// # Errors
    ///
    /// [`BlockError`] when the disk cannot be used, or the host refuses the engine.
    pub fn new(config: &BlockConfig, metrics: BlockMetrics) -> Result<Self, BlockError> {
        let disk = Disk::open(&config.path, config.read_only)?;
        let limiter = RateLimiter::new(&config.limiter);
        let limiter = limiter.map_err(|source| BlockError::Host { part: "a timer", source })?;
        Self::assemble(disk, Engine::new(config.engine)?, config.cache, limiter, metrics)
    }

    /// The device that `state` was saved from, on the disk that is at its path now.
    ///
    /// # Errors
    ///
    /// [`BlockError`] when the state is of an unknown version, when the disk is not as large as it was, and as for
    /// [`new`](Self::new).
    pub fn restore(state: &BlockState, metrics: BlockMetrics) -> Result<Self, BlockError> {
        Self::restore_at(state, &state.path, metrics)
    }

    /// Like [`restore`](Self::restore), on the disk at `path`: for a clone that has a copy of its own. It is locked
    /// as any other, and the guest sees no difference: its serial number stays.
    ///
    /// # Errors
    ///
    /// As for [`restore`](Self::restore).
    pub fn restore_at(state: &BlockState, path: &Path, metrics: BlockMetrics) -> Result<Self, BlockError> {
        if state.version != BLOCK_STATE_VERSION {
            return Err(BlockError::Version { found: state.version });
        }
        let mut disk = Disk::open(path, state.read_only)?;
        if disk.sectors() != state.sectors {
            let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
            let (actual_bytes, saved_bytes) = (bytes(disk.sectors()), bytes(state.sectors));
            return Err(BlockError::SizeChanged { path: path.to_owned(), actual_bytes, saved_bytes });
        }
        disk.set_id(state.device_id);
        let limiter = RateLimiter::restore(&state.limiter);
        let limiter = limiter.map_err(|source| BlockError::Host { part: "a timer", source })?;
        let mut block = Self::assemble(disk, Engine::new(state.engine)?, state.cache, limiter, metrics)?;
        block.config_unannounced = state.config_unannounced;
        Ok(block)
    }

    fn assemble(
        disk: Disk,
        engine: Engine,
        cache: CacheType,
        limiter: RateLimiter,
        metrics: BlockMetrics,
    ) -> Result<Self, BlockError> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let event = event.map_err(|source| BlockError::Host { part: "an eventfd", source })?;
        let config = Arc::new(ConfigSpace::new(config_bytes(disk.sectors()), metrics.cfg_fails.clone()));
        Ok(Self {
            engine,
            disk,
            cache,
            limiter,
            metrics,
            queue_events: [event],
            config,
            ring: None,
            config_unannounced: false,
            poll: Poll::default(),
        })
    }

    /// A device with io_uring, on a disk whose reads end when a test says so.
    #[cfg(test)]
    pub(super) fn on_pipe(pipe: io::PipeReader, sectors: u64, metrics: BlockMetrics) -> Self {
        let limiter = RateLimiter::new(&RateLimiterConfig::default()).unwrap();
        let engine = Engine::new(super::IoEngine::Async).unwrap();
        Self::assemble(Disk::of_pipe(pipe, sectors), engine, CacheType::Unsafe, limiter, metrics).unwrap()
    }

    /// What the device loop does at an event, for a test that keeps the loop out.
    #[cfg(test)]
    pub(super) fn serve_now(&mut self) {
        self.with_ring(Self::serve);
    }

    /// The device as it is now, but for its queue, which is the transport's.
    pub fn save(&mut self) -> BlockState {
        BlockState {
            version: BLOCK_STATE_VERSION,
            path: self.disk.path().to_owned(),
            read_only: self.disk.read_only(),
            cache: self.cache,
            engine: self.engine.kind(),
            limiter: self.limiter.save(),
            device_id: self.disk.id(),
            sectors: self.disk.sectors(),
            config_unannounced: self.config_unannounced,
        }
    }

    /// The disk's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.disk.path()
    }

    /// What the device counts.
    #[must_use]
    pub fn metrics(&self) -> &BlockMetrics {
        &self.metrics
    }

    /// Changes the disk under the guest: what is in flight is finished on the old one, and the guest is told of the
    /// new capacity. The same path again means: look how large it is now.
    ///
    /// # Errors
    ///
    /// [`BlockError`] when the new disk cannot be used; the old one then stays.
    pub fn update_path(&mut self, path: &Path) -> Result<(), BlockError> {
        let swapped = self.swap_disk(path);
        let counter = if swapped.is_ok() { &self.metrics.update_count } else { &self.metrics.update_fails };
        counter.inc();
        swapped
    }

    fn swap_disk(&mut self, path: &Path) -> Result<(), BlockError> {
        let found = Disk::open_unlocked(path, self.disk.read_only())?;
        let same = found.is_same_as(&self.disk);
        if !same {
            found.lock()?;
        }
        self.finish_in_flight();
        if same {
            self.disk.refresh_from(found);
        } else {
            self.disk = found;
        }
        self.config.update(&config_bytes(self.disk.sectors()));
        match &self.ring {
            Some(ring) => ring.interrupt().signal_config(),
            // Paused: the guest is told when it goes on.
            None => self.config_unannounced = true,
        }
        Ok(())
    }

    /// Changes the rate limiter, and has the device look at its queue again.
    ///
    /// # Errors
    ///
    /// When the device cannot be told.
    pub fn update_rate_limiter(&mut self, limit: &RateLimiterConfig) -> io::Result<()> {
        self.limiter.update(limit);
        self.metrics.update_count.inc();
        self.queue_events[0].write(1)
    }
}

/// The configuration space (virtio 1.2, 5.2.4): capacity, size_max (not offered), seg_max.
fn config_bytes(sectors: u64) -> Vec<u8> {
    [&sectors.to_le_bytes()[..], &0_u32.to_le_bytes(), &SEGMENTS_MAX.to_le_bytes()].concat()
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let flush = u64::from(self.cache == CacheType::Writeback) << blk::VIRTIO_BLK_F_FLUSH;
        let read_only = u64::from(self.disk.read_only()) << blk::VIRTIO_BLK_F_RO;
        let segments = 1 << blk::VIRTIO_BLK_F_SEG_MAX;
        feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC | flush | read_only | segments
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    fn config_space(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.config)
    }

    fn device_errors(&self) -> Counter {
        self.metrics.device_errors.clone()
    }

    fn activate_fails(&self) -> Counter {
        self.metrics.activate_fails.clone()
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let ring = Ring::single(activation)?;
        if std::mem::take(&mut self.config_unannounced) {
            ring.interrupt().signal_config();
        }
        self.ring = Some(ring);
        Ok(())
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.finish_in_flight();
        self.ring.take().map(Ring::into_state).into_iter().collect()
    }
}

impl MutEventSubscriber for Block {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let fd = events.fd();
        if fd == self.limiter.as_raw_fd() {
            self.metrics.rate_limiter_event_count.inc();
            self.limiter.on_timer();
        } else if self.engine.completion_event().is_some_and(|event| event.as_raw_fd() == fd) {
            self.with_ring(Self::advance);
        } else {
            self.metrics.queue_event_count.inc();
            self.with_ring(Self::count_if_empty);
        }
        self.with_ring(Self::serve);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Each write to an eventfd is an edge, whatever was written before: they need not be read.
        let each_write = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let completion = self.engine.completion_event().map(|event| Events::new(event, each_write));
        let queue = Events::new(&self.queue_events[0], each_write);
        let timer = Events::new(&self.limiter, EventSet::IN);
        for events in [Some(queue), Some(timer), completion].into_iter().flatten() {
            if let Err(error) = ops.add(events) {
                self.metrics.event_fails.inc();
                tracing::error!(%error, "cannot watch the drive's events");
            }
        }
    }
}
