//! What a chain asks of the disk: parsing, without I/O on the disk.
//!
//! ```text
//!   device reads:  [type u32][reserved u32][sector u64] [data of a write …]
//!   device writes: [data of a read …] [status u8]
//! ```
//!
//! The parts may be cut into buffers in any way (virtio 1.2, 2.7.4): Linux gives each one its own, others do not.

use memory::GuestRam;
use virtio_bindings::virtio_blk as blk;
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::chain::{Buffer, Chain, ChainError, split_front, split_last_byte, total_bytes};

const HEADER_BYTES: u32 = 16;

/// The kinds of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// From the disk to the guest.
    Read,
    /// From the guest to the disk.
    Write,
    /// Put all that was written on the disk.
    Flush,
    /// Tell the serial number.
    GetId,
    /// One that was not offered.
    Unsupported(u32),
}

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    /// Where on the disk, in sectors of 512 bytes.
    pub(super) sector: u64,
    /// What is to be read or written, in guest memory.
    pub(super) data: Vec<Buffer>,
    /// Where the status goes.
    pub(super) status: GuestAddress,
    /// The head of the chain.
    pub(super) head: u16,
}

impl Request {
    /// The request that `chain` makes.
    ///
    /// # Errors
    ///
    /// [`ChainError::TooShort`] when there is no whole header, or no place for the status.
    pub(super) fn parse(memory: &GuestRam, mut chain: Chain) -> Result<Self, ChainError> {
        let header = split_front(&mut chain.readable, HEADER_BYTES).ok_or(ChainError::TooShort)?;
        let status = split_last_byte(&mut chain.writable).ok_or(ChainError::TooShort)?;
        let (kind, sector) = decode(&gather(memory, &header));
        let data = if kind == Kind::Write { chain.readable } else { chain.writable };
        Ok(Self { kind, sector, data, status, head: chain.head })
    }

    /// The bytes that go to or from the disk, which a rate limiter counts.
    pub(super) fn disk_bytes(&self) -> u64 {
        match self.kind {
            Kind::Read | Kind::Write => total_bytes(&self.data),
            Kind::Flush | Kind::GetId | Kind::Unsupported(_) => 0,
        }
    }
}

/// Reads a header out of the buffers it is in.
fn gather(memory: &GuestRam, buffers: &[Buffer]) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    let mut rest = &mut header[..];
    for buffer in buffers {
        let (piece, after) = std::mem::take(&mut rest).split_at_mut(buffer.len_usize());
        memory.read_slice(piece, buffer.addr).expect("a chain's buffers are in RAM");
        rest = after;
    }
    header
}

fn decode(header: &[u8; HEADER_BYTES as usize]) -> (Kind, u64) {
    let [type0, type1, type2, type3, _, _, _, _, sector @ ..] = *header;
    let kind = match u32::from_le_bytes([type0, type1, type2, type3]) {
        blk::VIRTIO_BLK_T_IN => Kind::Read,
        blk::VIRTIO_BLK_T_OUT => Kind::Write,
        blk::VIRTIO_BLK_T_FLUSH => Kind::Flush,
        blk::VIRTIO_BLK_T_GET_ID => Kind::GetId,
        other => Kind::Unsupported(other),
    };
    (kind, u64::from_le_bytes(sector))
}
