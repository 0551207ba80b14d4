//! The handler's end of the hand-over: one message, and one descriptor with it.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

/// What handlers in use read at once.
const BUFFER_BYTES: usize = 1024;

/// One region, as the message has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Where the VMM has it.
    pub base: u64,
    /// In bytes.
    pub size: u64,
    /// Where the memory file has it.
    pub offset: u64,
    /// In bytes.
    pub page_size: u64,
}

/// What was handed over.
#[derive(Debug)]
pub struct Received {
    /// The userfaultfd.
    pub uffd: OwnedFd,
    /// The regions.
    pub mappings: Vec<Mapping>,
}

/// Receives the message, and refuses one whose regions are not together as large as the memory file.
///
/// # Errors
///
/// Of the socket; and `InvalidData` for any other message.
pub fn receive(stream: &UnixStream, memory_bytes: u64) -> io::Result<Received> {
    let mut bytes = [0; BUFFER_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let [uffd] = <[OwnedFd; 1]>::try_from(fds)
        .map_err(|fds| invalid(&format!("{} descriptors instead of one", fds.len())))?;
    let regions: Vec<Value> = serde_json::from_slice(&bytes[..message.bytes])?;
    let mappings = regions.iter().map(mapping).collect::<io::Result<Vec<_>>>()?;
    let size: u64 = mappings.iter().map(|mapping| mapping.size).sum();
    if size != memory_bytes {
        return Err(invalid(&format!("{size} bytes of guest memory, and {memory_bytes} in the file")));
    }
    Ok(Received { uffd, mappings })
}

fn mapping(region: &Value) -> io::Result<Mapping> {
    let number =
        |name: &str| region[name].as_u64().ok_or_else(|| invalid(&format!("a region without {name}")));
    let page_size = number("page_size")?;
    if number("page_size_kib")? != page_size || region.as_object().is_none_or(|fields| fields.len() != 5) {
        return Err(invalid("a region that is not as handlers expect it"));
    }
    Ok(Mapping {
        base: number("base_host_virt_addr")?,
        size: number("size")?,
        offset: number("offset")?,
        page_size,
    })
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the VMM sent {what}"))
}
