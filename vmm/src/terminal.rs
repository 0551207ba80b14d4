//! The terminal of the process: raw while a guest has it, as it was afterwards.
//!
//! `unsafe` is here for `tcgetattr` and `tcsetattr`, which fill and read a structure of C.
#![expect(unsafe_code, reason = "termios")]

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// Standard input in raw mode. Dropping it gives the terminal back.
pub(crate) struct RawTerminal {
    before: libc::termios,
}

impl RawTerminal {
    /// Makes standard input raw; `None` where it is no terminal.
    ///
    /// # Errors
    ///
    /// What the terminal answers.
    pub(crate) fn stdin() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let mut before = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the call fills the structure it is given.
        if unsafe { libc::tcgetattr(stdin.as_raw_fd(), before.as_mut_ptr()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so the structure is filled.
        let before = unsafe { before.assume_init() };
        let mut raw = before;
        // What `cfmakeraw` clears, but for output processing: the log shares the terminal.
        raw.c_iflag &= !(libc::BRKINT
            | libc::ICRNL
            | libc::INLCR
            | libc::IGNCR
            | libc::INPCK
            | libc::ISTRIP
            | libc::IXON);
        raw.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
        raw.c_cc[libc::VMIN] = 1;
        raw.c_cc[libc::VTIME] = 0;
        set(&raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = set(&self.before) {
            tracing::warn!(%error, "the terminal stays raw: `reset` mends it");
        }
    }
}

fn set(termios: &libc::termios) -> io::Result<()> {
    // SAFETY: the call reads the structure it is given.
    let result = unsafe { libc::tcsetattr(io::stdin().as_raw_fd(), libc::TCSANOW, termios) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
