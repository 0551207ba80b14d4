//! What the guest's cycles are in time.

use std::time::Duration;

use kvm_ioctls::Kvm;

const NS_PER_MS: u128 = 1_000_000;

/// The rate of the counter that guests on this host see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    khz: u32,
}

impl Clock {
    /// Asks KVM: a guest that was told of no other rate counts at the host's.
    pub(crate) fn of_guests() -> Self {
        let vm = Kvm::new().and_then(|kvm| kvm.create_vm()).expect("this host runs guests");
        let khz =
            vm.create_vcpu(0).and_then(|vcpu| vcpu.get_tsc_khz()).expect("KVM knows its counter's rate");
        Self { khz }
    }

    pub(crate) fn ms(self, cycles: u64) -> f64 {
        cycles as f64 / f64::from(self.khz)
    }

    pub(crate) fn cycles(self, time: Duration) -> u64 {
        let cycles = time.as_nanos() * u128::from(self.khz) / NS_PER_MS;
        u64::try_from(cycles).expect("times here are short")
    }
}
