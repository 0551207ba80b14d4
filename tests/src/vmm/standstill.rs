//! A thread that is stuck in a system call, as one is whose disk does not answer.
//!
//! The kernel stops it there for its tracer (`ptrace(2)`), which needs no disk that really hangs, and no rights but
//! those over a child. For the process it is the same: the thread holds what it held, and goes only with the process.
#![expect(unsafe_code, reason = "ptrace")]

use std::fs;
use std::ptr;
use std::time::Instant;

use super::{POLL_INTERVAL, Vmm, WAIT};

/// What a thread is in while it reads or writes a disk.
const DISK_CALLS: [libc::c_long; 2] = [libc::SYS_preadv, libc::SYS_pwritev];

impl Vmm {
    /// Stops the thread of this name in its next read or write of a disk, for good.
    pub fn hang_in_disk_call(&self, thread: &str) {
        let id = self.thread_id(thread);
        let has_stopped = stop(self.id(), id);
        // A process has ended once its threads have, and a traced thread once its tracer has taken note.
        std::thread::spawn(move || wait(id, 0));
        assert!(has_stopped, "{thread} cannot be stopped, or neither reads nor writes");
    }
}

/// Stops a thread at the start or the end of a disk call: at both it holds what it holds in between.
fn stop(process: u32, thread: libc::pid_t) -> bool {
    let options = libc::PTRACE_O_TRACESYSGOOD.into();
    // SAFETY: none of these calls touches memory of this process.
    let trace = |request, data: libc::c_long| unsafe { libc::ptrace(request, thread, ptr::null_mut::<u8>(), data) } >= 0;
    if !trace(libc::PTRACE_SEIZE, options) || !trace(libc::PTRACE_INTERRUPT, 0) {
        return false;
    }
    let deadline = Instant::now() + WAIT;
    while Instant::now() < deadline {
        if wait(thread, libc::WNOHANG) == 0 {
            std::thread::sleep(POLL_INTERVAL);
        } else if DISK_CALLS.contains(&current_call(process, thread)) {
            return true;
        } else if !trace(libc::PTRACE_SYSCALL, 0) {
            return false;
        }
    }
    false
}

/// The system call that a stopped thread is about to make or has made, or -1.
fn current_call(process: u32, thread: libc::pid_t) -> libc::c_long {
    let text = fs::read_to_string(format!("/proc/{process}/task/{thread}/syscall")).unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(-1)
}

fn wait(thread: libc::pid_t, flags: libc::c_int) -> libc::pid_t {
    let mut status = 0;
    // SAFETY: the call fills in the number it is given.
    unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL | flags) }
}
