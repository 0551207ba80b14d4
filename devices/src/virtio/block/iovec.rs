//! Guest memory as the vectors of a system call.
//!
//! Host addresses of guest memory leave vm-memory's volatile slices here, for `preadv`, `pwritev` and io_uring: the
//! kernel reads and writes through them, this program never does. That needs one `unsafe`, to say that the vectors
//! may go to another thread.
#![expect(unsafe_code, reason = "iovecs are raw pointers, which do not implement Send")]

use memory::GuestRam;
use vm_memory::{GuestMemory, Permissions};

use crate::virtio::chain::Buffer;

/// Buffers of a guest as vectors. They keep the memory mapped.
#[derive(Debug)]
pub(super) struct GuestIoVecs {
    vecs: Vec<libc::iovec>,
    /// How many of them are done with.
    done: usize,
    _memory: GuestRam,
}

// SAFETY: the pointers are addresses for the kernel, which does not care what thread passes them. They are valid as
// long as `_memory` is, which goes along.
unsafe impl Send for GuestIoVecs {}

impl GuestIoVecs {
    /// The vectors of `buffers`, which have been found to be in `memory`.
    pub(super) fn new(memory: &GuestRam, buffers: &[Buffer]) -> Self {
        let vecs = buffers.iter().flat_map(|buffer| {
            let slices = memory.get_slices(buffer.addr, buffer.len_usize(), Permissions::ReadWrite);
            slices.expect("guest RAM has no translation that could fail").map(|slice| {
                let slice = slice.expect("a chain's buffers are in RAM");
                libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }
            })
        });
        Self { vecs: vecs.collect(), done: 0, _memory: memory.clone() }
    }

    /// What is still to be read or written, at most as many vectors as one call takes.
    pub(super) fn rest(&self) -> &[libc::iovec] {
        /// The kernel's limit (include/uapi/linux/uio.h).
        const UIO_MAXIOV: usize = 1024;
        let rest = &self.vecs[self.done..];
        &rest[..rest.len().min(UIO_MAXIOV)]
    }

    /// Takes `bytes` off the front: they are done.
    pub(super) fn advance(&mut self, mut bytes: usize) {
        for vec in &mut self.vecs[self.done..] {
            let taken = vec.iov_len.min(bytes);
            vec.iov_base = vec.iov_base.wrapping_byte_add(taken);
            vec.iov_len -= taken;
            bytes -= taken;
            if vec.iov_len > 0 {
                return;
            }
            self.done += 1;
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.done == self.vecs.len()
    }
}
