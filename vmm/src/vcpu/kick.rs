//! Taking a vCPU out of the guest.
//!
//! A kick sets `immediate_exit` in the vCPU's `kvm_run` page, then signals its thread. Where the thread is in the
//! guest, the signal takes it out. Where it is just about to enter, the flag sends it back. So no kick is lost
//! (Documentation/virt/kvm/api.rst, "KVM_RUN").
//!
//! `unsafe` is here because that flag is a byte in a page shared with the kernel, written by one thread while another
//! sleeps in the system call that reads it.
#![expect(unsafe_code, reason = "a byte of kvm_run is written from another thread")]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::arch::host::state::{self, Extent, StateError, VcpuState};
use crate::signals;

/// Makes the kick's signal one that interrupts a system call and does nothing else. Once for a process.
pub(crate) fn install_handler() -> Result<(), vmm_sys_util::errno::Error> {
    extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), interrupt)
}

/// A vCPU whose run page can be reached through its [`Kicker`].
pub(super) struct Kickable {
    fd: VcpuFd,
    kicker: Arc<Kicker>,
}

impl Kickable {
    pub(super) fn new(mut fd: VcpuFd) -> (Self, Arc<Kicker>) {
        let flag = NonNull::from(&mut fd.get_kvm_run().immediate_exit).cast::<AtomicU8>();
        let kicker = Arc::new(Kicker { flag: Mutex::new(Some(Flag(flag))) });
        (Self { fd, kicker: Arc::clone(&kicker) }, kicker)
    }

    /// Enters the guest.
    pub(super) fn run(&mut self) -> Result<VcpuExit<'_>, kvm_ioctls::Error> {
        signals::inside_guest(|| self.fd.run())
    }

    /// Tells the guest that it was stopped.
    pub(super) fn note_pause(&self) {
        state::note_pause(&self.fd);
    }

    /// Reads everything KVM holds of it.
    pub(super) fn save(&self, extent: &Extent) -> Result<VcpuState, StateError> {
        VcpuState::save(&self.fd, extent)
    }

    /// Takes back a kick, before its cause is looked for.
    pub(super) fn clear_kick(&mut self) {
        self.kicker.set(0);
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        // The run page goes with the descriptor, so its address is forgotten first.
        *self.kicker.flag.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Where a vCPU's `immediate_exit` is, as long as the vCPU is.
#[derive(Debug)]
pub(super) struct Kicker {
    flag: Mutex<Option<Flag>>,
}

#[derive(Debug)]
struct Flag(NonNull<AtomicU8>);

// SAFETY: the byte is only ever accessed atomically, through `Kicker::set`.
unsafe impl Send for Flag {}

impl Kicker {
    /// Takes the vCPU that `thread` runs out of the guest, or keeps it from entering.
    pub(super) fn kick(&self, thread: &JoinHandle<()>) {
        self.set(1);
        if let Err(error) = thread.kill(SIGRTMIN()) {
            // The thread has ended, and the guest with it.
            tracing::debug!(%error, "a vCPU could not be kicked");
        }
    }

    fn set(&self, value: u8) {
        if let Some(Flag(flag)) = &*self.flag.lock().unwrap_or_else(PoisonError::into_inner) {
            // SAFETY: the page is mapped as long as `flag` is there: `Kickable` takes it away, under the same lock,
            // before it unmaps. A byte is aligned, and only the kernel reads it besides: kvm-ioctls makes a reference
            // to the whole page while it decodes an exit, but looks at other fields of it.
            unsafe { flag.as_ref() }.store(value, Ordering::Release);
        }
    }
}
