//! The one message of the hand-over, and the socket that it goes through.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use memory::GuestRam;
use memory::uffd::Registered;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, sendmsg, socket_with,
};
use serde::Serialize;

use super::HandOverError;

/// What handlers in use read at once; what does not fit is lost to them.
const HANDLER_BUFFER_BYTES: usize = 1024;

/// One region, as handlers know it. Fields are sent in this order.
#[derive(Serialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    /// In bytes.
    page_size: u64,
    /// In bytes, too: its name is older than its meaning.
    page_size_kib: u64,
}

/// Connects to who listens at `path`.
pub(super) fn connect(path: &Path, time_limit: Duration) -> Result<OwnedFd, HandOverError> {
    let refused = |error: Errno| HandOverError::Connect(error.into());
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(refused)?;
    // It also limits how long a connection waits for room in the listener's queue (`unix_stream_connect`).
    set_socket_timeout(&socket, Timeout::Send, Some(time_limit)).map_err(refused)?;
    let address = SocketAddrUnix::new(path).map_err(refused)?;
    let deadline = Instant::now() + time_limit;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) if Instant::now() < deadline => {}
            Err(Errno::AGAIN) => return Err(HandOverError::NotAccepted),
            Err(error) => return Err(refused(error)),
        }
    }
}

/// Sends the message, and the userfaultfd with it.
pub(super) fn send(socket: &OwnedFd, registered: &Registered) -> Result<(), HandOverError> {
    let message = message(registered.ram());
    if message.len() > HANDLER_BUFFER_BYTES {
        let (bytes, regions) = (message.len(), registered.ram().regions().len());
        tracing::warn!(bytes, regions, "a page-fault handler that reads 1024 bytes at once will not do");
    }
    let fds = [registered.fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)), "there is room for one descriptor");
    let sent = sendmsg(socket, &[IoSlice::new(message.as_bytes())], &mut control, SendFlags::NOSIGNAL);
    match sent {
        Ok(bytes) if bytes == message.len() => Ok(()),
        Ok(_) => Err(HandOverError::Send(io::ErrorKind::WriteZero.into())),
        Err(error) => Err(HandOverError::Send(error.into())),
    }
}

fn message(ram: &GuestRam) -> String {
    let page_size = ram.backing().page_size().bytes();
    let mapping = |region: &memory::ram::RamRegion| Mapping {
        base_host_virt_addr: region.hva(),
        size: region.range().size_bytes,
        offset: region.offset_in_file(),
        page_size,
        page_size_kib: page_size,
    };
    let mappings: Vec<_> = ram.regions().iter().map(mapping).collect();
    serde_json::to_string(&mappings).expect("numbers can be written")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use memory::uffd::{self, Feature, Features, Modes};
    use memory::{Backing, RamRange};
    use vm_memory::GuestAddress;

    use super::*;
    use crate::machine::memory::MemoryError;

    const ANONYMOUS: Backing = Backing::Anonymous { transparent_huge_pages: false };

    fn ram(sizes_mib: &[u64]) -> GuestRam {
        let range = |(nth, mib): (usize, &u64)| RamRange {
            gpa: GuestAddress((nth as u64) << 32),
            size_bytes: mib << 20,
        };
        GuestRam::new(&sizes_mib.iter().enumerate().map(range).collect::<Vec<_>>(), ANONYMOUS).unwrap()
    }

    #[test]
    fn the_message_is_what_handlers_know() {
        let ram = ram(&[4, 2]);
        let (first, second) = (ram.regions()[0].hva(), ram.regions()[1].hva());
        assert_eq!(
            message(&ram),
            format!(
                "[{{\"base_host_virt_addr\":{first},\"size\":4194304,\"offset\":0,\
                 \"page_size\":4096,\"page_size_kib\":4096}},\
                 {{\"base_host_virt_addr\":{second},\"size\":2097152,\"offset\":4194304,\
                 \"page_size\":4096,\"page_size_kib\":4096}}]"
            )
        );
    }

    #[test]
    fn nine_regions_fit_the_buffer_of_a_handler() {
        let bytes = message(&ram(&[16; 9])).len();
        assert!(bytes <= HANDLER_BUFFER_BYTES, "{bytes}");
    }

    #[test]
    fn a_client_sees_what_it_sees_of_firecracker() {
        let folder = tempfile::tempdir().unwrap();
        let error = connect(&folder.path().join("none"), Duration::from_secs(1)).unwrap_err();
        assert_eq!(
            crate::error::chain(&MemoryError::HandOver(error)),
            "Error creating guest memory from uffd: Failed to connect to UDS Unix stream: \
             No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_handler_that_is_gone_before_the_message_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let socket = connect(&path, Duration::from_secs(1)).unwrap();
        drop(listener.accept().unwrap());
        let modes = Modes { missing: true, ..Modes::default() };
        let uffd = uffd::open(Features::NONE.with(Feature::EVENT_REMOVE)).unwrap();
        let error = send(&socket, &Registered::new(uffd, ram(&[2]), modes).unwrap()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("Broken pipe") && text.contains("see why it has gone"), "{text}");
    }
}
