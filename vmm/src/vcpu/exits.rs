//! What a guest wants when it leaves: an access to a device, or the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::bus::Bus;
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::VcpuExit;
use memory::GuestRam;

use super::VcpuMetrics;
use super::runner::Next;
use crate::machine::message::GuestEvent;

/// What an access to nothing reads, as on a PC's bus.
const NOTHING: u8 = 0xff;

/// What a vCPU is given to live with.
#[derive(Clone)]
pub struct Ways {
    /// The ways to devices.
    pub buses: Buses,
    /// Its memory, to tell where one of its pages is.
    pub ram: GuestRam,
}

/// The ways from a vCPU to devices.
///
/// An access is passed on with the width it came with. String instructions on ports come as one access of all their
/// bytes: a device that is a byte wide does not answer those, and no guest that matters uses them there.
#[derive(Clone)]
pub struct Buses {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped registers.
    pub mmio: Arc<Bus>,
    /// Whether the guest has ended itself: what leaves it then does not enter again.
    pub ended: Arc<AtomicBool>,
}

impl Buses {
    pub(super) fn port_in(&self, port: u16, data: &mut [u8], metrics: &VcpuMetrics) -> Next {
        metrics.exit_io_in.inc();
        read(&self.ports, port.into(), data)
    }

    pub(super) fn port_out(&self, port: u16, data: &[u8], metrics: &VcpuMetrics) -> Next {
        metrics.exit_io_out.inc();
        self.write(&self.ports, port.into(), data)
    }

    pub(super) fn mmio_read(&self, address: u64, data: &mut [u8], metrics: &VcpuMetrics) -> Next {
        metrics.exit_mmio_read.inc();
        read(&self.mmio, address, data)
    }

    fn write(&self, bus: &Bus, address: u64, data: &[u8]) -> Next {
        if !bus.write(address, data) {
            tracing::trace!(address = format_args!("{address:#x}"), "a write to nothing");
        }
        if self.ended.load(Ordering::Acquire) { Next::Wait } else { Next::Enter }
    }

    pub(super) fn mmio_write(&self, address: u64, data: &[u8], metrics: &VcpuMetrics) -> Next {
        metrics.exit_mmio_write.inc();
        self.write(&self.mmio, address, data)
    }
}

fn read(bus: &Bus, address: u64, data: &mut [u8]) -> Next {
    if !bus.read(address, data) {
        data.fill(NOTHING);
    }
    Next::Enter
}

/// What a `KVM_EXIT_SYSTEM_EVENT` of `kind` means.
pub(super) fn system_event(kind: u32) -> GuestEvent {
    match kind {
        KVM_SYSTEM_EVENT_SHUTDOWN => GuestEvent::PowerOff,
        KVM_SYSTEM_EVENT_RESET => GuestEvent::Reset,
        other => GuestEvent::Crashed { cause: format!("the guest reported system event {other}") },
    }
}

/// Says of an exit that no guest should cause what it was.
pub(super) fn describe(exit: &VcpuExit<'_>) -> String {
    match exit {
        VcpuExit::InternalError => {
            "KVM cannot go on with an instruction of the guest (KVM_EXIT_INTERNAL_ERROR): \
             `faultless doctor` says whether this host runs such guests"
                .to_owned()
        }
        VcpuExit::FailEntry(reason, cpu) => {
            format!("the processor refused to enter the guest (reason {reason:#x}, host CPU {cpu})")
        }
        other => format!("unexpected exit {other:?}"),
    }
}
