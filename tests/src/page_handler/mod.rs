//! A page-fault handler as they are written for Firecracker: it listens, is handed a userfaultfd, and serves a memory
//! file. Told to, it does what a handler should not.
//!
//! ```text
//!   listener ──accept──▶ receive: one message, one descriptor ──▶ Guest ──▶ serve: events ──▶ COPY
//! ```
//!
//! It knows of the VMM what such handlers know: the message, and nothing else of this project.

mod guest;
mod receive;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use guest::{Answer, Guest};
pub use receive::{Mapping, Received, receive};

/// How long a fault waits that cannot be served before a removal is read.
const RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// What a handler does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// What it should.
    Good,
    /// Goes, with a fault read and not answered, after it has given so many pages.
    DieAfter(u64),
    /// Every byte that it gives is the complement of what it should be.
    Wrong,
    /// It also sends as much as the other end takes, all the time.
    Flood,
    /// It listens, and accepts nobody.
    NeverAccept,
    /// It ends the registration after it has given so many pages, and goes.
    UnregisterAfter(u64),
}

/// A mode that there is not.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no mode: say good, die-after=N, wrong, flood, never-accept or unregister-after=N")]
pub struct UnknownMode(String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        let unknown = || UnknownMode(text.to_owned());
        let number = |count: &str| count.parse::<u64>().map_err(|_| unknown());
        match text.split_once('=') {
            Some(("die-after", count)) => Ok(Self::DieAfter(number(count)?)),
            Some(("unregister-after", count)) => Ok(Self::UnregisterAfter(number(count)?)),
            Some(_) => Err(unknown()),
            None => match text {
                "good" => Ok(Self::Good),
                "wrong" => Ok(Self::Wrong),
                "flood" => Ok(Self::Flood),
                "never-accept" => Ok(Self::NeverAccept),
                _ => Err(unknown()),
            },
        }
    }
}

/// What a handler did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// Pages that it gave from the memory file.
    pub pages: u64,
    /// Pages that it gave as zeros, since they had been removed.
    pub zeros: u64,
    /// Removals that it was told of.
    pub removals: u64,
}

/// Serves the first VMM that connects to `listener` from `memory`, until that closes its end, or `mode` says so.
///
/// # Errors
///
/// Of the sockets, the file and the userfaultfd; and a message that is not as handlers expect it.
pub fn serve(listener: &UnixListener, memory: &File, mode: Mode) -> io::Result<Served> {
    if mode == Mode::NeverAccept {
        // Until the process ends.
        loop {
            thread::sleep(Duration::from_secs(1));
        }
    }
    let (stream, _) = listener.accept()?;
    let received = receive(&stream, memory.metadata()?.len())?;
    let mut guest = Guest::new(received, memory);
    let mut served = Served::default();
    let mut waiting = VecDeque::new();
    loop {
        if !wait(&guest, &stream, waiting.is_empty(), mode)? {
            return Ok(served);
        }
        served.removals += guest.read_events(&mut waiting)?;
        // A fault that is told again is put behind the others: each is looked at once.
        for _ in 0..waiting.len() {
            let Some(address) = waiting.pop_front() else { break };
            match mode {
                Mode::DieAfter(pages) if served.pages >= pages => return Ok(served),
                Mode::UnregisterAfter(pages) if served.pages >= pages => {
                    guest.unregister()?;
                    return Ok(served);
                }
                _ => {}
            }
            match guest.give(address, mode == Mode::Wrong)? {
                Answer::Page => served.pages += 1,
                Answer::Zero => served.zeros += 1,
                Answer::Later => waiting.push_back(address),
                Answer::Nothing => {}
            }
        }
    }
}

/// Waits for an event; says whether the VMM is still there.
fn wait(guest: &Guest<'_>, stream: &UnixStream, is_idle: bool, mode: Mode) -> io::Result<bool> {
    if mode == Mode::Flood {
        match send(stream, &[0x55; 4096], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    let mut fds = [
        PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::RDHUP),
        PollFd::from_borrowed_fd(guest.fd(), PollFlags::IN),
    ];
    let timeout = (!is_idle || mode == Mode::Flood).then_some(&RETRY);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::INTR) => Ok(fds[0].revents().is_empty()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_what_they_say() {
        let mode = |text: &str| text.parse::<Mode>().ok();
        assert_eq!(mode("die-after=3"), Some(Mode::DieAfter(3)));
        assert_eq!(mode("never-accept"), Some(Mode::NeverAccept));
        for text in ["", "die-after", "die-after=many", "good=1", "bad"] {
            assert_eq!(mode(text), None, "{text}");
        }
    }
}
