//! How urgent a thread is beside the others of this host, without any privilege.
//!
//! A thread that asks the scheduler for short slices is let in sooner when it is woken, and one that asks for long ones
//! gives way sooner. Over time each has its share all the same: `sched_runtime` of `sched_setattr(2)`, since Linux 6.12.
//! Older kernels take it and do nothing with it.
//!
//! `unsafe` is here for one system call that the C library has no function for, and one that `rustix` keeps for processes.
#![expect(unsafe_code, reason = "sched_setattr, getpriority")]

use std::io;
use std::time::Duration;

/// Longer than what others have, which is 3 ms or so.
const LONG: Duration = Duration::from_millis(20);
/// The shortest that there is.
const SHORT: Duration = Duration::from_micros(100);

/// How much nicer a thread is that nobody waits for: a step is a quarter less.
const LAST_NICE: i32 = 10;
const NICE_MAX: i32 = 19;

/// This thread works beside a guest: others that are woken run first, vCPUs and who serves their faults. Waking it
/// interrupts nobody (`SCHED_BATCH` of `sched(7)`).
///
/// # Errors
///
/// What the kernel answers; the thread is as urgent as any then.
pub fn be_background() -> io::Result<()> {
    set(libc::SCHED_BATCH, LONG, 0)
}

/// The same, and nobody waits for this thread: where others want the processor, it has a tenth of their share. There is no
/// way back from that without a privilege.
///
/// # Errors
///
/// As of [`be_background`].
pub(crate) fn be_last() -> io::Result<()> {
    set(libc::SCHED_BATCH, LONG, LAST_NICE)
}

/// This thread is waited for whenever it is woken, and has little to do then.
///
/// # Errors
///
/// What the kernel answers; the thread is as urgent as any then.
pub fn be_urgent() -> io::Result<()> {
    set(libc::SCHED_OTHER, SHORT, 0)
}

fn set(policy: libc::c_int, slice: Duration, nicer: i32) -> io::Result<()> {
    // SAFETY: it reads nothing and writes nothing of this process. What it gives for this thread cannot be an error.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).expect("a few bytes"),
        sched_policy: policy.cast_unsigned(),
        sched_flags: 0,
        sched_nice: (nice + nicer).min(NICE_MAX),
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
            let urgent = policy_and_nice();
            be_last().unwrap();
            [background, urgent, policy_and_nice()]
        };
        let told = std::thread::spawn(told).join().unwrap();
        assert_eq!(told, [(libc::SCHED_BATCH, 3), (libc::SCHED_OTHER, 3), (libc::SCHED_BATCH, 13)]);
    }
}
