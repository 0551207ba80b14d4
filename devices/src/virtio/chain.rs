//! A descriptor chain, read once and checked whole before anything is done with it.
//!
//! `virtio-queue` walks chains safely, but ends silently where one is broken: at an index out of range, a loop, a
//! table outside RAM, a nested indirect table. The last descriptor tells: a chain that ended properly ends with one
//! that has no next. What does not is refused here, and so is what the walk does not look at (virtio 1.2, 2.7.4.2
//! and 2.7.5).
//!
//! Invariant: every buffer of a [`Chain`] is inside guest RAM, and there are at most as many as the queue has
//! descriptors.

use memory::GuestRam;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

/// Why a descriptor chain was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It ended at a descriptor that names a next one: there is a loop, an index out of range, a table that is not
    /// in RAM, a nested table, or more than 4 GiB.
    #[error("a descriptor chain does not end: it loops, leaves its table or is longer than 4 GiB")]
    Broken,
    /// It has more descriptors than the queue.
    #[error("a descriptor chain has more descriptors than its queue")]
    TooLong,
    /// A buffer the device reads follows one it writes.
    #[error("a descriptor chain has a readable buffer after a writable one")]
    Order,
    /// A buffer is not in RAM.
    #[error("a descriptor names {len:#x} bytes at {addr:#x}, which is not all RAM")]
    OutsideRam {
        /// The guest physical address.
        addr: u64,
        /// The length in bytes.
        len: u32,
    },
    /// There are too few bytes for what the device needs of each request.
    #[error("a descriptor chain is too short for a request")]
    TooShort,
}

/// Guest memory that a descriptor names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Buffer {
    pub(crate) addr: GuestAddress,
    pub(crate) len: u32,
}

impl Buffer {
    pub(crate) fn len_usize(self) -> usize {
        usize::try_from(self.len).expect("a usize has 32 bits or more")
    }
}

/// A whole chain: its head, what the device reads, and what it writes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) head: u16,
    pub(crate) readable: Vec<Buffer>,
    pub(crate) writable: Vec<Buffer>,
}

impl Chain {
    /// Reads and checks the chain that `descriptors` walks. `length_max` is the queue's size.
    pub(crate) fn read(
        memory: &GuestRam,
        descriptors: DescriptorChain<&GuestRam>,
        length_max: u16,
    ) -> Result<Self, ChainError> {
        let mut chain = Self { head: descriptors.head_index(), ..Self::default() };
        let mut ended = false;
        for (index, descriptor) in descriptors.enumerate() {
            if index >= usize::from(length_max) {
                return Err(ChainError::TooLong);
            }
            ended = !descriptor.has_next();
            let buffer = Buffer { addr: descriptor.addr(), len: descriptor.len() };
            if !memory.check_range(buffer.addr, buffer.len_usize(), Permissions::ReadWrite) {
                return Err(ChainError::OutsideRam { addr: buffer.addr.0, len: buffer.len });
            }
            match (descriptor.is_write_only(), chain.writable.is_empty()) {
                (true, _) => chain.writable.push(buffer),
                (false, true) => chain.readable.push(buffer),
                (false, false) => return Err(ChainError::Order),
            }
        }
        if ended { Ok(chain) } else { Err(ChainError::Broken) }
    }
}

/// The sum of the lengths of `buffers`, in bytes.
pub(crate) fn total_bytes(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
}

/// Cuts the first `bytes` off `buffers` and gives them, or nothing when there are fewer.
pub(crate) fn split_front(buffers: &mut Vec<Buffer>, mut bytes: u32) -> Option<Vec<Buffer>> {
    if total_bytes(buffers) < u64::from(bytes) {
        return None;
    }
    let mut front = Vec::new();
    let mut whole = 0;
    for buffer in buffers.iter_mut() {
        let taken = buffer.len.min(bytes);
        front.push(Buffer { addr: buffer.addr, len: taken });
        buffer.addr = GuestAddress(buffer.addr.0 + u64::from(taken));
        buffer.len -= taken;
        bytes -= taken;
        whole += usize::from(buffer.len == 0);
        if bytes == 0 {
            break;
        }
    }
    buffers.drain(..whole);
    Some(front)
}

/// Cuts the last byte off `buffers` and gives its address, or nothing when there is none.
pub(crate) fn split_last_byte(buffers: &mut Vec<Buffer>) -> Option<GuestAddress> {
    while buffers.last().is_some_and(|buffer| buffer.len == 0) {
        buffers.pop();
    }
    let last = buffers.last_mut()?;
    last.len -= 1;
    let address = GuestAddress(last.addr.0 + u64::from(last.len));
    if last.len == 0 {
        buffers.pop();
    }
    Some(address)
}
