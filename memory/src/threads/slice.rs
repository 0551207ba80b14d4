//! How urgent a thread is beside the others of this host, without any privilege.
//!
//! A thread that asks the scheduler for short slices is let in sooner when it is woken, and one that asks for long ones
//! gives way sooner. Over time each has its share all the same: `sched_runtime` of `sched_setattr(2)`, since Linux 6.12.
//! Older kernels take it and do nothing with it. A thread passes on what it was given to those that it starts.
//!
//! `unsafe` is here for one system call that the C library has no function for, and one that `rustix` keeps for processes.
#![expect(unsafe_code, reason = "sched_setattr, getpriority")]

use std::io;
use std::time::Duration;

/// `SCHED_FLAG_RESET_ON_FORK` of `include/uapi/linux/sched.h`.
const SCHED_FLAG_RESET_ON_FORK: u64 = 1;

/// Longer than what others have, which is 3 ms or so, and not by much: some kernels let a slice come to its end.
const LONG: Duration = Duration::from_millis(5);
/// The shortest that there is.
const SHORT: Duration = Duration::from_micros(100);

/// This thread works beside a guest: others that are woken run first, vCPUs and who serves their faults. Waking it
/// interrupts nobody (`SCHED_BATCH` of `sched(7)`).
///
/// # Errors
///
/// What the kernel answers; the thread is as urgent as any then.
pub fn be_background() -> io::Result<()> {
    set(Some(libc::SCHED_BATCH), LONG)
}

/// This thread is waited for whenever it is woken, and has little to do then.
///
/// # Errors
///
/// What the kernel answers; the thread is as urgent as any then.
pub fn be_urgent() -> io::Result<()> {
    set(None, SHORT)
}

/// Another policy than the two of the ordinary scheduler was chosen by somebody, and is left as it is.
fn set(policy: Option<libc::c_int>, slice: Duration) -> io::Result<()> {
    // SAFETY: it looks at this thread, and touches no memory.
    let current = unsafe { libc::sched_getscheduler(0) };
    let (policy_now, resets) = (current & !libc::SCHED_RESET_ON_FORK, current & libc::SCHED_RESET_ON_FORK);
    if ![libc::SCHED_OTHER, libc::SCHED_BATCH].contains(&policy_now) {
        return Ok(());
    }
    // SAFETY: as above. What it gives for this thread cannot be an error.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).expect("a few bytes"),
        sched_policy: policy.unwrap_or(policy_now).cast_unsigned(),
        sched_flags: if resets == 0 { 0 } else { SCHED_FLAG_RESET_ON_FORK },
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: u64::try_from(slice.as_nanos()).expect("a few milliseconds"),
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads the structure, of the size that it names, while this call lasts.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_in_the_background_is_in_no_hurry_and_as_nice_as_it_was() {
        let policy_and_nice = || {
            // SAFETY: it looks at this thread, and touches no memory.
            let policy = unsafe { libc::sched_getscheduler(0) };
            // SAFETY: as above.
            (policy, unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) })
        };
        let told = move || {
            // SAFETY: it changes how nice this thread is, which the test began.
            assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 3) }, 0);
            be_background().unwrap();
            let background = policy_and_nice();
            be_urgent().unwrap();
            (background, policy_and_nice())
        };
        let told = std::thread::spawn(told).join().unwrap();
        assert_eq!(told, ((libc::SCHED_BATCH, 3), (libc::SCHED_BATCH, 3)));
    }
}
