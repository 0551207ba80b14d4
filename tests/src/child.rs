//! What a child process is between fork and exec: bound to the test that started it, even one that is killed, or the
//! leader of a terminal.
#![expect(unsafe_code, reason = "code that runs in the child, between fork and exec")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the kernel kill the child when the *thread* that spawns it ends: spawn and wait on the same thread, or on one
/// that lives as long.
pub(crate) fn dies_with_parent(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    let set = move || {
        // SAFETY: an async-signal-safe system call that touches no memory.
        let set = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
        // SAFETY: as above. A parent that died before the first call sends no signal: this tells.
        let parent_now = unsafe { libc::getppid() };
        if set == 0 && u32::try_from(parent_now) == Ok(parent) {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: the closure neither allocates nor takes a lock, as the child of a threaded process must not.
    unsafe { command.pre_exec(set) }
}

/// Makes the child what a shell is in a new terminal: the leader of a session, in the foreground of the terminal that
/// is its standard input.
pub(crate) fn leads_terminal(command: &mut Command) -> &mut Command {
    let lead = || {
        rustix::process::setsid()?;
        Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
    };
    // SAFETY: two system calls, without an allocation or a lock.
    unsafe { command.pre_exec(lead) }
}
