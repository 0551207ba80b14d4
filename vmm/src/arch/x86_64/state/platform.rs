//! What KVM holds of the machine as a whole: interrupt controllers, timer and clock.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{
    KVM_CAP_ADJUST_CLOCK, KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use super::{StateError, Uapi, refused};

/// The controllers in the order in which they are set: what feeds first, then what is fed.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// A `kvm_irqchip`. It holds a union, so it stays bytes.
type Chip = Uapi<[u8; size_of::<kvm_irqchip>()]>;

/// What is saved of the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlatformState {
    /// PIC master, PIC slave, I/O APIC.
    pub chips: [Chip; 3],
    /// The interval timer.
    pub pit: Uapi<kvm_pit_state2>,
    /// The guest's clock (kvmclock), from its start on.
    pub clock_ns: u64,
    /// The host's time of day when the clock was read, since 1970.
    pub realtime_ns: u64,
}

/// What a guest's clock does with the time it was not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClockPolicy {
    /// It goes on where it was.
    #[default]
    Continue,
    /// It is put ahead by the time that has passed, by the host's time of day. Only kvmclock is: the time stamp counter
    /// goes on where it was.
    Realtime,
}

impl PlatformState {
    /// The number of this form of it.
    pub const VERSION: u16 = 1;

    /// Reads all of `vm`, whose vCPUs stand still and are saved.
    ///
    /// # Errors
    ///
    /// KVM's refusal of a step.
    pub fn save(vm: &VmFd) -> Result<Self, StateError> {
        let clock = vm.get_clock().map_err(refused("read the clock"))?;
        // KVM tells both times of one moment where its clock is built on the TSC (Linux 5.16).
        let is_told = clock.flags & KVM_CLOCK_REALTIME != 0;
        let realtime_ns = if is_told { clock.realtime } else { time_of_day_ns() };
        let pit = Uapi(vm.get_pit2().map_err(refused("read the interval timer"))?);
        let [master, slave, ioapic] = CHIPS.map(|chip| save_chip(vm, chip));
        Ok(Self { chips: [master?, slave?, ioapic?], pit, clock_ns: clock.clock, realtime_ns })
    }

    /// Puts all of it into `vm`, which has its controllers and timer, and whose vCPUs are restored and have not run.
    ///
    /// # Errors
    ///
    /// KVM's refusal of a step, or controllers that are none.
    pub fn restore(&self, vm: &VmFd, policy: ClockPolicy) -> Result<(), StateError> {
        // After the vCPUs: KVM builds its clock on their counters. Times of what comes before it are not the guest's.
        vm.set_clock(&self.clock(vm, policy)).map_err(refused("set the clock"))?;
        // After the vCPUs: the I/O APIC hands on what is pending in it, and a local APIC would forget that.
        for (chip, id) in self.chips.iter().zip(CHIPS) {
            restore_chip(vm, chip, id)?;
        }
        // Last: it counts as soon as it is set, from the beginning of its period, and interrupts.
        vm.set_pit2(&self.pit.0).map_err(refused("set the interval timer"))
    }

    /// Before Linux 5.16 KVM takes no time of day, so what has passed is added here.
    fn clock(&self, vm: &VmFd, policy: ClockPolicy) -> kvm_clock_data {
        let mut clock = kvm_clock_data { clock: self.clock_ns, ..kvm_clock_data::default() };
        if policy == ClockPolicy::Realtime {
            let flags = u32::try_from(vm.check_extension_raw(KVM_CAP_ADJUST_CLOCK.into())).unwrap_or(0);
            if flags & KVM_CLOCK_REALTIME != 0 {
                (clock.flags, clock.realtime) = (KVM_CLOCK_REALTIME, self.realtime_ns);
            } else {
                let passed_ns = time_of_day_ns().saturating_sub(self.realtime_ns);
                clock.clock = clock.clock.saturating_add(passed_ns);
            }
        }
        clock
    }
}

fn save_chip(vm: &VmFd, chip_id: u32) -> Result<Chip, StateError> {
    let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
    vm.get_irqchip(&mut chip).map_err(refused("read an interrupt controller"))?;
    Ok(Uapi(chip.as_bytes().try_into().expect("the array has the structure's size")))
}

fn restore_chip(vm: &VmFd, saved: &Chip, chip_id: u32) -> Result<(), StateError> {
    let chip = kvm_irqchip::read_from_bytes(&saved.0).expect("the array has the structure's size");
    if chip.chip_id != chip_id {
        return Err(StateError::Damaged { what: "list of interrupt controllers" });
    }
    vm.set_irqchip(&chip).map_err(refused("set an interrupt controller"))
}

fn time_of_day_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
