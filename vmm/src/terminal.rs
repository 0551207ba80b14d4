//! The terminal of the process: raw while a guest has it, as it was afterwards, whatever ends the process.
//!
//! `unsafe` is here for the calls of termios, which fill and read a structure of C.
#![expect(unsafe_code, reason = "termios and the terminal's foreground process group")]

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The terminal's settings before the first change. A static, since the handler of a fatal signal puts them back.
static BEFORE: OnceLock<libc::termios> = OnceLock::new();
/// Whether the terminal is raw now.
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// Whether standard input is a terminal that this process may use. One in the background of its controlling terminal
/// may not: the kernel would stop it (`SIGTTIN`, `SIGTTOU`). A terminal that controls nobody here is anybody's.
pub(crate) fn is_ours() -> bool {
    // SAFETY: the call takes and returns plain numbers.
    let foreground = unsafe { libc::tcgetpgrp(libc::STDIN_FILENO) };
    // SAFETY: as above.
    let own = unsafe { libc::getpgrp() };
    io::stdin().is_terminal() && (foreground < 0 || foreground == own)
}

/// Standard input in raw mode. Dropping it gives the terminal back.
#[derive(Debug)]
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw; `None` where it is no terminal of ours.
    ///
    /// # Errors
    ///
    /// What the terminal answers.
    pub(crate) fn stdin() -> io::Result<Option<Self>> {
        if !is_ours() {
            return Ok(None);
        }
        let before = read()?;
        let mut raw = *BEFORE.get_or_init(|| before);
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
        // First the mark: a signal in between puts back what has not changed yet, which does no harm.
        IS_RAW.store(true, Ordering::SeqCst);
        write(&raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back if it is raw. Async-signal-safe: atomics and `tcsetattr` only.
pub(crate) fn restore() {
    if let Some(before) = BEFORE.get().filter(|_| IS_RAW.swap(false, Ordering::SeqCst)) {
        // Where the terminal has gone, there is nobody to tell.
        let _ = write(before);
    }
}

fn read() -> io::Result<libc::termios> {
    let mut termios = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the call fills the structure it is given.
    if unsafe { libc::tcgetattr(libc::STDIN_FILENO, termios.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the structure is filled.
    Ok(unsafe { termios.assume_init() })
}

fn write(termios: &libc::termios) -> io::Result<()> {
    // SAFETY: the call reads the structure it is given.
    let result = unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, termios) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
