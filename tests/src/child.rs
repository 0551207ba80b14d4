//! Child processes that do not outlive the test that started them, even one that is killed.
#![expect(unsafe_code, reason = "PR_SET_PDEATHSIG must be set in the child, between fork and exec")]

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
