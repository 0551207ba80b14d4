//! The engine that does one operation after the other, by `preadv` and `pwritev` on guest memory.
#![expect(unsafe_code, reason = "vectored calls on guest memory take raw pointers")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::Operation;

/// Does all of `operation`.
pub(super) fn run(file: &File, mut operation: Operation) -> io::Result<()> {
    if let Operation::Flush = operation {
        return file.sync_data();
    }
    while !is_done(&operation) {
        let moved = match step(file, &operation) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        operation.progress(moved)?;
    }
    Ok(())
}

fn is_done(operation: &Operation) -> bool {
    match operation {
        Operation::Read(vecs, _) | Operation::Write(vecs, _) => vecs.is_done(),
        Operation::Flush => true,
    }
}

/// Does as much of a read or write as the kernel does at a time, and says how many bytes that is.
fn step(file: &File, operation: &Operation) -> io::Result<usize> {
    let position = |offset: u64| libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput);
    let count = |vecs: &[libc::iovec]| libc::c_int::try_from(vecs.len()).expect("at most 1024 vectors");
    let fd = file.as_raw_fd();
    let moved = match operation {
        Operation::Read(vecs, offset) => {
            let (vecs, position) = (vecs.rest(), position(*offset)?);
            // SAFETY: the vectors are guest memory, which they keep mapped, and which nobody holds references to.
            unsafe { libc::preadv(fd, vecs.as_ptr(), count(vecs), position) }
        }
        Operation::Write(vecs, offset) => {
            let (vecs, position) = (vecs.rest(), position(*offset)?);
            // SAFETY: as above; the kernel only reads.
            unsafe { libc::pwritev(fd, vecs.as_ptr(), count(vecs), position) }
        }
        Operation::Flush => 0,
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}
