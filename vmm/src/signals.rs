//! What happens at signals.
//!
//! Those that ask for an end are turned into a message to the driver. Those that a fault raises end the process with
//! the exit code that orchestrators of Firecracker know, and one line on standard error.
//!
//! `unsafe` is here because a signal handler is installed, and may only do what `signal-safety(7)` lists.
#![expect(unsafe_code, reason = "signal handlers")]

use vmm_sys_util::signal::register_signal_handler;

/// Signals that end the process at once, and the exit code of each.
const FATAL: [(libc::c_int, i32, &str); 6] = [
    (libc::SIGSYS, 148, "faultless: a system call was refused (SIGSYS)\n"),
    (libc::SIGBUS, 149, "faultless: a page of memory could not be had (SIGBUS)\n"),
    (libc::SIGSEGV, 150, "faultless: a wrong memory access (SIGSEGV)\n"),
    (libc::SIGXFSZ, 151, "faultless: a file grew over its limit (SIGXFSZ)\n"),
    (libc::SIGXCPU, 154, "faultless: the limit of processor time is used up (SIGXCPU)\n"),
    (libc::SIGILL, 157, "faultless: an illegal instruction (SIGILL)\n"),
];

/// Installs the handlers of fatal signals.
///
/// # Errors
///
/// The host's refusal of one.
pub(crate) fn install_fatal_handlers() -> Result<(), vmm_sys_util::errno::Error> {
    FATAL.iter().try_for_each(|(signal, _, _)| register_signal_handler(*signal, die))
}

extern "C" fn die(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let known = FATAL.iter().find(|(fatal, _, _)| *fatal == signal);
    let (code, text) = known.map_or((1, "faultless: a fatal signal\n"), |(_, code, text)| (*code, *text));
    // SAFETY: `write` is async-signal-safe, and the text is a static string.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    // SAFETY: `_exit` is async-signal-safe and does not return.
    unsafe { libc::_exit(code) }
}
