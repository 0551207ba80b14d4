//! Signals that a fault raises: they end the process with the exit code that orchestrators of Firecracker know, one
//! line on standard error, and the terminal as it was. Signals that ask for an end are the API thread's business
//! ([`crate::front`]).
//!
//! `unsafe` is here because a signal handler is installed, and may only do what `signal-safety(7)` lists.
#![expect(unsafe_code, reason = "signal handlers")]

use std::io;
use std::mem;
use std::ptr;

use crate::terminal;

/// Signals that end the process at once, and the exit code of each. `SIGABRT` is how a panic ends a release build.
const FATAL: [(libc::c_int, i32, &str); 8] = [
    (libc::SIGSYS, 148, "faultless: a system call was refused (SIGSYS)\n"),
    (libc::SIGBUS, 149, "faultless: a page of memory could not be had (SIGBUS)\n"),
    (libc::SIGSEGV, 150, "faultless: a wrong memory access (SIGSEGV)\n"),
    (libc::SIGXFSZ, 151, "faultless: a file grew over its limit (SIGXFSZ)\n"),
    (libc::SIGXCPU, 154, "faultless: the limit of processor time is used up (SIGXCPU)\n"),
    (libc::SIGILL, 157, "faultless: an illegal instruction (SIGILL)\n"),
    (libc::SIGABRT, 1, "faultless: an internal error (SIGABRT)\n"),
    (libc::SIGQUIT, 1, "faultless: ended by SIGQUIT\n"),
];

/// Installs the handlers of fatal signals.
///
/// # Errors
///
/// The host's refusal of one.
pub(crate) fn install_fatal_handlers() -> io::Result<()> {
    FATAL.iter().try_for_each(|(signal, _, _)| {
        // SAFETY: a `sigaction` of zeros is a valid one.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        let handler: extern "C" fn(libc::c_int) = die;
        action.sa_sigaction = handler as libc::sighandler_t;
        // On the alternate stack that each thread has: the own one may be what is used up.
        action.sa_flags = libc::SA_ONSTACK;
        // SAFETY: the structure is valid, and the handler does only what is async-signal-safe.
        let result = unsafe { libc::sigaction(*signal, &raw const action, ptr::null_mut()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    })
}

extern "C" fn die(signal: libc::c_int) {
    terminal::restore();
    let known = FATAL.iter().find(|(fatal, _, _)| *fatal == signal);
    let (code, text) = known.map_or((1, "faultless: a fatal signal\n"), |(_, code, text)| (*code, *text));
    // SAFETY: `write` is async-signal-safe, and the text is a static string.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    // SAFETY: `_exit` is async-signal-safe and does not return.
    unsafe { libc::_exit(code) }
}
