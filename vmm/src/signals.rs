//! Signals that a fault raises: they end the process with the exit code that orchestrators of Firecracker know, one
//! line on standard error, and the terminal as it was. Signals that ask for an end are the API thread's business
//! ([`crate::front`]).
//!
//! SIGBUS is another matter in a guest: a page of *its* memory could not be had, which is no fault of this process.
//!
//! ```text
//!   vCPU thread ── inside_guest(KVM_RUN) ──▶ the guest touches a page that is poisoned
//!                                               │ SIGBUS: noted, and the thread goes on
//!        take_bus_error() ◀── EINTR ────────────┘
//! ```
//!
//! `unsafe` is here because a signal handler is installed, and may only do what `signal-safety(7)` lists.
#![expect(unsafe_code, reason = "signal handlers")]

use std::io;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering, compiler_fence};

use vmm_sys_util::signal::{self, block_signal, unblock_signal};

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

/// Signals that ask for an end.
const ENDS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// `BUS_ADRERR`: nothing is there. What a kernel says of a poisoned page that knows no memory errors.
const BUS_ADRERR: libc::c_int = 2;
/// `BUS_MCEERR_AR`: a memory error that must be acted on.
const BUS_MCEERR_AR: libc::c_int = 4;

/// Keeps signals that ask for an end from this thread, and from those that it starts.
pub(crate) fn block_ends() -> io::Result<()> {
    ENDS.into_iter().try_for_each(|end| block_signal(end).or_else(is_so_already))
}

/// Lets this thread take them.
pub(crate) fn unblock_ends() -> io::Result<()> {
    ENDS.into_iter().try_for_each(|end| unblock_signal(end).or_else(is_so_already))
}

/// To block what is blocked is no error here.
fn is_so_already(error: signal::Error) -> io::Result<()> {
    match error {
        signal::Error::SignalAlreadyBlocked(_) => Ok(()),
        other => Err(io::Error::other(format!("signals cannot be blocked: {other:?}"))),
    }
}

/// What a signal told of memory that could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BusError {
    /// The host's address of it.
    pub(crate) address: u64,
    /// The kernel's word for why.
    pub(crate) code: &'static str,
}

/// Whether this thread is in a guest, and what has happened to it there. The code is zero where nothing has.
struct Inside {
    is_inside: AtomicBool,
    address: AtomicU64,
    code: AtomicI32,
}

thread_local! {
    // Made when the program is loaded and never taken down, so a signal handler may look at it.
    static INSIDE: Inside = const {
        Inside { is_inside: AtomicBool::new(false), address: AtomicU64::new(0), code: AtomicI32::new(0) }
    };
}

/// Enters a guest by `run`. While it is in there, memory that cannot be had does not end the process: afterwards
/// [`take_bus_error`] tells of it.
pub(crate) fn inside_guest<T>(run: impl FnOnce() -> T) -> T {
    INSIDE.with(|inside| {
        inside.is_inside.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        let result = run();
        compiler_fence(Ordering::SeqCst);
        inside.is_inside.store(false, Ordering::Relaxed);
        result
    })
}

/// What has happened to this thread's guest since it was last asked.
pub(crate) fn take_bus_error() -> Option<BusError> {
    INSIDE.with(|inside| {
        let code = match inside.code.swap(0, Ordering::Relaxed) {
            0 => return None,
            BUS_MCEERR_AR => "BUS_MCEERR_AR",
            _ => "BUS_ADRERR",
        };
        Some(BusError { address: inside.address.load(Ordering::Relaxed), code })
    })
}

/// Installs the handlers of fatal signals.
///
/// # Errors
///
/// The host's refusal of one.
pub(crate) fn install_fatal_handlers() -> io::Result<()> {
    FATAL.iter().try_for_each(|(signal, _, _)| {
        let handler: extern "C" fn(libc::c_int) = die;
        if *signal == libc::SIGBUS {
            return Ok(());
        }
        install(*signal, handler as libc::sighandler_t, 0)
    })?;
    let handler: extern "C" fn(libc::c_int, *const libc::siginfo_t, *const libc::c_void) = bus_error;
    install(libc::SIGBUS, handler as libc::sighandler_t, libc::SA_SIGINFO)
}

fn install(signal: libc::c_int, handler: libc::sighandler_t, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: a `sigaction` of zeros is a valid one.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler;
    // On the alternate stack that each thread has: the own one may be what is used up.
    action.sa_flags = libc::SA_ONSTACK | flags;
    // SAFETY: the structure is valid, and the handlers do only what is async-signal-safe.
    let result = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn bus_error(signal: libc::c_int, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel gives a valid structure to a handler that asks for one.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS has an address; where it was sent by a process, what is read is part of the structure all the same.
    let address = unsafe { info.si_addr() }.addr() as u64;
    // Other codes say that somebody sent it, or that nobody need act on it.
    let is_met = matches!(info.si_code, BUS_ADRERR | BUS_MCEERR_AR);
    let is_guests = is_met
        && INSIDE.with(|inside| {
            let is_inside = inside.is_inside.load(Ordering::Relaxed);
            if is_inside {
                inside.address.store(address, Ordering::Relaxed);
                inside.code.store(info.si_code, Ordering::Relaxed);
            }
            is_inside
        });
    if is_guests {
        return;
    }
    if is_met {
        say(b"faultless: memory could not be had at host address 0x");
        say(&hexadecimal(address));
        say(b"\n");
    }
    die(signal)
}

/// The digits of an address, without an allocation.
fn hexadecimal(address: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    for (digit, shift) in digits.iter_mut().rev().zip((0..64).step_by(4)) {
        let nibble = usize::try_from(address >> shift & 0xf).unwrap_or(0);
        *digit = b"0123456789abcdef"[nibble];
    }
    digits
}

fn say(text: &[u8]) {
    // SAFETY: `write` is async-signal-safe, and the text is borrowed. Nothing can be done about a failure.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}

extern "C" fn die(signal: libc::c_int) {
    terminal::restore();
    let known = FATAL.iter().find(|(fatal, _, _)| *fatal == signal);
    let (code, text) = known.map_or((1, "faultless: a fatal signal\n"), |(_, code, text)| (*code, *text));
    say(text.as_bytes());
    // SAFETY: `_exit` is async-signal-safe and does not return.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_in_all_its_digits() {
        assert_eq!(&hexadecimal(0x7f01_2345_6000), b"00007f0123456000");
        assert_eq!(&hexadecimal(u64::MAX), b"ffffffffffffffff");
    }

    #[test]
    fn nothing_has_happened_to_a_guest_that_ran_well() {
        assert_eq!(inside_guest(|| 7), 7);
        assert_eq!(take_bus_error(), None);
    }
}
