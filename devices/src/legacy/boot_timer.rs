//! Firecracker's boot timer: a guest's init writes 123 when it runs, and the VMM logs how long that took.

use std::time::{Duration, Instant};

use crate::bus::BusDevice;

/// What init writes (Firecracker's documentation of `--boot-timer`).
const BOOT_COMPLETE: u8 = 123;

/// The boot timer. Firecracker has it at MMIO 0xc000_0000.
#[derive(Debug)]
pub struct BootTimer {
    started: Instant,
    boot: Option<Duration>,
}

impl BootTimer {
    /// The length of the device, in bytes.
    pub const LEN: u64 = 0x1000;

    /// A timer for a VM that was started at `started`.
    #[must_use]
    pub fn new(started: Instant) -> Self {
        Self { started, boot: None }
    }

    /// How long the guest took until its init said so, once it has.
    #[must_use]
    pub fn boot_duration(&self) -> Option<Duration> {
        self.boot
    }
}

impl BusDevice for BootTimer {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 && data.first() == Some(&BOOT_COMPLETE) && self.boot.is_none() {
            let boot = self.started.elapsed();
            tracing::info!("Guest-boot-time = {:>6} us {} ms", boot.as_micros(), boot.as_millis());
            self.boot = Some(boot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_magic_write_counts() {
        let mut timer = BootTimer::new(Instant::now());
        timer.write(0, &[1]);
        timer.write(8, &[BOOT_COMPLETE]);
        assert_eq!(timer.boot_duration(), None);
        timer.write(0, &[BOOT_COMPLETE, 0, 0, 0]);
        let first = timer.boot_duration();
        assert!(first.is_some());
        timer.write(0, &[BOOT_COMPLETE]);
        assert_eq!(timer.boot_duration(), first);
    }
}
