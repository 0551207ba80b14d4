//! A device's configuration space: a few bytes that the driver reads and the device may change.

use std::sync::Mutex;

use prometheus_client::metrics::counter::Counter;

use crate::sync::lock;

#[derive(Debug)]
struct Content {
    bytes: Vec<u8>,
    generation: u32,
}

/// A configuration space and its generation, which grows with each change: so a driver that reads a field in two
/// halves learns that it changed in between (virtio 1.2, 2.5.1).
#[derive(Debug)]
pub struct ConfigSpace {
    content: Mutex<Content>,
    failures: Counter,
}

impl ConfigSpace {
    /// A space of these bytes, whose length never changes. `failures` counts accesses that make no sense.
    #[must_use]
    pub fn new(bytes: Vec<u8>, failures: Counter) -> Self {
        Self { content: Mutex::new(Content { bytes, generation: 0 }), failures }
    }

    /// Fills `data` from `offset`. What is past the end reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let content = lock(&self.content);
        let rest = usize::try_from(offset).ok().and_then(|offset| content.bytes.get(offset..)).unwrap_or(&[]);
        let count = rest.len().min(data.len());
        data[..count].copy_from_slice(&rest[..count]);
        if count < data.len() {
            self.failures.inc();
        }
    }

    /// Refuses a write of the driver's: no device here has a field that its driver may change.
    pub(crate) fn refuse_write(&self) {
        self.failures.inc();
    }

    /// Changes the first bytes, which is a new generation.
    ///
    /// # Panics
    ///
    /// When `bytes` are more than the space has.
    pub fn update(&self, bytes: &[u8]) {
        let mut content = lock(&self.content);
        content.bytes[..bytes.len()].copy_from_slice(bytes);
        content.generation = content.generation.wrapping_add(1);
    }

    /// The number of changes so far, wrapping.
    #[must_use]
    pub fn generation(&self) -> u32 {
        lock(&self.content).generation
    }

    /// Goes on counting changes from a saved number.
    pub fn restore_generation(&self, generation: u32) {
        lock(&self.content).generation = generation;
    }
}
