//! Power off and reset, as a reduced-hardware ACPI platform does them (ACPI 6.5, 4.8.3.7 and 4.8.3.6).
//!
//! | offset | register | what a guest does |
//! |---|---|---|
//! | 0 | sleep control | writes `SLP_EN` with the `SLP_TYP` that the DSDT's `\_S5` names: power off |
//! | 1 | reset | writes [`PowerControl::RESET_VALUE`]: reset |
//! | 2 | sleep status | reads 0: it never woke up |
//!
//! The VMM puts the registers where it likes, and their addresses into the FADT.

use crate::bus::BusDevice;

/// What a guest asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerEvent {
    /// Power off.
    Off,
    /// Reset.
    Reset,
}

/// Told of a [`PowerEvent`], on the thread of the vCPU that asked: it must not wait.
pub type PowerCallback = Box<dyn Fn(PowerEvent) + Send>;

/// The sleep and reset registers.
pub struct PowerControl {
    notify: PowerCallback,
}

impl std::fmt::Debug for PowerControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PowerControl").finish_non_exhaustive()
    }
}

impl PowerControl {
    /// The offset of the FADT's SLEEP_CONTROL_REG.
    pub const SLEEP_CONTROL_OFFSET: u64 = 0;
    /// The offset of the FADT's RESET_REG.
    pub const RESET_OFFSET: u64 = 1;
    /// The offset of the FADT's SLEEP_STATUS_REG.
    pub const SLEEP_STATUS_OFFSET: u64 = 2;
    /// The length of the device, in bytes.
    pub const LEN: u64 = 3;
    /// The FADT's RESET_VALUE.
    pub const RESET_VALUE: u8 = 1;
    /// The `SLP_TYP` of soft off, to be named by `\_S5`.
    pub const SLEEP_TYPE_S5: u8 = 5;

    /// Registers that tell `notify` what the guest asks for.
    #[must_use]
    pub fn new(notify: PowerCallback) -> Self {
        Self { notify }
    }
}

/// `SLP_EN` of the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;

/// What a write of `value` to the register at `offset` asks for.
fn event_of(offset: u64, value: u8) -> Option<PowerEvent> {
    let sleep_type = value >> 2 & 0b111;
    match offset {
        PowerControl::SLEEP_CONTROL_OFFSET
            if value & SLEEP_ENABLE != 0 && sleep_type == PowerControl::SLEEP_TYPE_S5 =>
        {
            Some(PowerEvent::Off)
        }
        PowerControl::RESET_OFFSET if value == PowerControl::RESET_VALUE => Some(PowerEvent::Reset),
        _ => None,
    }
}

impl BusDevice for PowerControl {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // A wider access writes consecutive registers.
        let events = (offset..=u64::MAX).zip(data).filter_map(|(offset, &value)| event_of(offset, value));
        events.for_each(&self.notify);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn only_a_sleep_to_s5_and_the_reset_value_are_events() {
        let (sender, events) = channel();
        let mut power = PowerControl::new(Box::new(move |event| sender.send(event).unwrap()));
        for value in (0..=u8::MAX).filter(|value| value & 0x3c != 0x34) {
            power.write(PowerControl::SLEEP_CONTROL_OFFSET, &[value]);
        }
        for value in (0..=u8::MAX).filter(|&value| value != 1) {
            power.write(PowerControl::RESET_OFFSET, &[value]);
        }
        power.write(PowerControl::SLEEP_STATUS_OFFSET, &[0x34]);
        power.write(u64::MAX, &[1, 2]);
        assert!(events.try_recv().is_err());
        power.write(PowerControl::SLEEP_CONTROL_OFFSET, &[0x34]);
        assert_eq!(events.recv().unwrap(), PowerEvent::Off);
        power.write(PowerControl::RESET_OFFSET, &[1]);
        assert_eq!(events.recv().unwrap(), PowerEvent::Reset);
        let mut status = [0xff];
        power.read(PowerControl::SLEEP_STATUS_OFFSET, &mut status);
        assert_eq!(status, [0]);
    }
}
