//! The entropy device (virtio 1.2, 5.4): buffers go in empty and come back random.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::chain::{Buffer, Chain, ChainError, split_front, total_bytes};
use super::ring::{Ring, RingError};
use super::{Activation, ConfigSpace, StartError, VirtioDevice, feature};
use crate::limiter::{RateLimiter, RateLimiterConfig, RateLimiterState};
use crate::metrics::EntropyMetrics;
use crate::random::fill_random;

/// The size of the queue, as Firecracker has it.
const QUEUE_SIZES: [u16; 1] = [256];

/// The most random bytes that one request gets. The device may fill less than the driver gave (virtio 1.2, 5.4.6.1).
const REQUEST_BYTES_MAX: u32 = 64 << 10;

/// The version of [`EntropyState`] that is written.
pub const ENTROPY_STATE_VERSION: u32 = 1;

/// An entropy device as it is saved, next to its transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntropyState {
    /// [`ENTROPY_STATE_VERSION`] when it was saved.
    pub version: u32,
    /// The rate limiter.
    pub limiter: RateLimiterState,
}

/// Why an entropy device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EntropyError {
    /// The host gave no descriptor.
    #[error("cannot make the entropy device")]
    Host(#[from] io::Error),
    /// The saved state is of a version that this program does not know.
    #[error(
        "the entropy device was saved in version {found}, and this program knows up to {ENTROPY_STATE_VERSION}"
    )]
    Version {
        /// The version found.
        found: u32,
    },
}

/// The entropy device. It is a subscriber of the device loop.
#[derive(Debug)]
pub struct Entropy {
    limiter: RateLimiter,
    metrics: EntropyMetrics,
    queue_events: [EventFd; 1],
    config: Arc<ConfigSpace>,
    ring: Option<Ring>,
}

impl Entropy {
    /// A device that gives randomness as fast as `limit` says.
    ///
    /// # Errors
    ///
    /// [`EntropyError::Host`] when the host gives no descriptor.
    pub fn new(limit: &RateLimiterConfig, metrics: EntropyMetrics) -> Result<Self, EntropyError> {
        Ok(Self::with_limiter(RateLimiter::new(limit)?, metrics)?)
    }

    /// The device that `state` was saved from.
    ///
    /// # Errors
    ///
    /// [`EntropyError`] when the state is of an unknown version, or the host gives no descriptor.
    pub fn restore(state: &EntropyState, metrics: EntropyMetrics) -> Result<Self, EntropyError> {
        if state.version != ENTROPY_STATE_VERSION {
            return Err(EntropyError::Version { found: state.version });
        }
        Ok(Self::with_limiter(RateLimiter::restore(&state.limiter)?, metrics)?)
    }

    fn with_limiter(limiter: RateLimiter, metrics: EntropyMetrics) -> io::Result<Self> {
        let queue_events = [EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?];
        let config = Arc::new(ConfigSpace::new(Vec::new(), Counter::default()));
        Ok(Self { limiter, metrics, queue_events, config, ring: None })
    }

    /// The device as it is now, but for its queue, which is the transport's.
    pub fn save(&mut self) -> EntropyState {
        EntropyState { version: ENTROPY_STATE_VERSION, limiter: self.limiter.save() }
    }

    /// Changes the rate limiter, and has the device look at its queue again.
    ///
    /// # Errors
    ///
    /// When the device cannot be told.
    pub fn update_rate_limiter(&mut self, limit: &RateLimiterConfig) -> io::Result<()> {
        self.limiter.update(limit);
        self.queue_events[0].write(1)
    }

    fn serve(&mut self) {
        let Some(mut ring) = self.ring.take() else { return };
        if let Err(error) = self.serve_ring(&mut ring) {
            self.metrics.entropy_event_fails.inc();
            ring.interrupt().fail(&error);
        }
        self.ring = Some(ring);
    }

    /// Serves what waits, at most one queue full of it: other devices have the same thread.
    fn serve_ring(&mut self, ring: &mut Ring) -> Result<(), RingError> {
        if ring.interrupt().needs_reset() {
            return Ok(());
        }
        for _ in 0..ring.size() {
            let Some(chain) = ring.pop()? else { break };
            let bytes = wanted_bytes(&chain)?;
            if !self.limiter.admit(1, u64::from(bytes)) {
                ring.unpop();
                self.metrics.entropy_rate_limiter_throttled.inc();
                return ring.announce();
            }
            let written = self.fill(ring, chain.writable, bytes);
            ring.push_used(chain.head, written)?;
        }
        ring.announce()?;
        if ring.enable_notification()? && self.queue_events[0].write(1).is_err() {
            self.metrics.entropy_event_fails.inc();
        }
        Ok(())
    }

    /// Fills the first `bytes` of `buffers`, and says how many were.
    fn fill(&self, ring: &Ring, mut buffers: Vec<Buffer>, bytes: u32) -> u32 {
        let mut random = [0; 4096];
        let mut filled = 0;
        for buffer in split_front(&mut buffers, bytes).unwrap_or_default() {
            for start in (0..buffer.len).step_by(random.len()) {
                let piece =
                    random.len().min((buffer.len - start).try_into().expect("a usize has 32 bits or more"));
                if let Err(error) = fill_random(&mut random[..piece]) {
                    tracing::error!(%error, "the host has no randomness");
                    self.metrics.host_rng_fails.inc();
                    return filled;
                }
                let addr = GuestAddress(buffer.addr.0 + u64::from(start));
                ring.memory().write_slice(&random[..piece], addr).expect("a chain's buffers are in RAM");
                filled += u32::try_from(piece).expect("a piece is at most 4096 bytes");
            }
        }
        self.metrics.entropy_event_count.inc();
        self.metrics.entropy_bytes.inc_by(u64::from(filled));
        filled
    }
}

/// How many bytes a request gets. One without room for any makes no sense.
fn wanted_bytes(chain: &Chain) -> Result<u32, ChainError> {
    let room = total_bytes(&chain.writable);
    let bytes = u32::try_from(room).unwrap_or(u32::MAX).min(REQUEST_BYTES_MAX);
    if bytes == 0 { Err(ChainError::TooShort) } else { Ok(bytes) }
}

impl VirtioDevice for Entropy {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        feature::VERSION_1 | feature::EVENT_IDX
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
        self.ring = Some(Ring::single(activation)?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.ring.take().map(Ring::into_state).into_iter().collect()
    }
}

impl MutEventSubscriber for Entropy {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        if events.fd() == self.limiter.as_raw_fd() {
            self.metrics.rate_limiter_event_count.inc();
            self.limiter.on_timer();
        } else {
            // Nothing to read means that another event has already taken it.
            drop(self.queue_events[0].read());
        }
        self.serve();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let queue = ops.add(Events::new(&self.queue_events[0], EventSet::IN));
        let timer = ops.add(Events::new(&self.limiter, EventSet::IN));
        if let Err(error) = queue.and(timer) {
            tracing::error!(%error, "cannot watch the entropy device's events");
        }
    }
}

#[cfg(test)]
mod tests;
