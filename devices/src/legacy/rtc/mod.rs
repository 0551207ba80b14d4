//! The MC146818 real-time clock of a PC, and the RAM that comes with it.
//!
//! A guest writes a register's number to port 0x70 and reads or writes its value at 0x71. The clock shows the host's
//! time (UTC), in BCD and 24 hours, and cannot be set: what a guest writes to it is ignored. No interrupt is
//! connected.
//!
//! Invariant: the fields that follow a read of the seconds, within a second, are of the same instant. So a guest
//! never reads an hour that was over when its minutes began.

mod state;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bus::BusDevice;
pub use state::{RTC_STATE_VERSION, RtcRestoreError, RtcState};

/// Registers, by number (Motorola MC146818A data sheet, table of the address map).
mod reg {
    pub(super) const SECONDS: u8 = 0x00;
    pub(super) const MINUTES: u8 = 0x02;
    pub(super) const HOURS: u8 = 0x04;
    pub(super) const WEEKDAY: u8 = 0x06;
    pub(super) const DAY: u8 = 0x07;
    pub(super) const MONTH: u8 = 0x08;
    pub(super) const YEAR: u8 = 0x09;
    pub(super) const A: u8 = 0x0a;
    pub(super) const B: u8 = 0x0b;
    pub(super) const C: u8 = 0x0c;
    pub(super) const D: u8 = 0x0d;
    pub(super) const RAM_START: u8 = 0x0e;
    /// Where PCs keep the century, and the FADT says so.
    pub(super) const CENTURY: u8 = 0x32;
}

/// The 32.768 kHz time base, and 1024 Hz periodic rate; no update in progress.
const REGISTER_A: u8 = 0x26;
/// 24 hours, BCD, no interrupts.
const REGISTER_B: u8 = 0x02;
/// The RAM and time are valid.
const REGISTER_D: u8 = 0x80;
const RAM_BYTES: usize = 128;

/// A point in time as a calendar has it, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CivilTime {
    year: u64,
    month: u64,
    day: u64,
    /// Sunday is 1.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl CivilTime {
    /// The calendar's view of `unix_s` seconds after 1970 began.
    ///
    /// Years are counted from March 1st, so that the leap day comes last, in eras of 400 of them, which all have
    /// 146,097 days.
    fn from_unix(unix_s: u64) -> Self {
        const DAY_S: u64 = 86_400;
        const ERA_DAYS: u64 = 146_097;
        /// From March 1st of the year 0 to January 1st of 1970.
        const EPOCH_DAYS: u64 = 719_468;
        let (days, second_of_day) = (unix_s / DAY_S, unix_s % DAY_S);
        let (era, day_of_era) = ((days + EPOCH_DAYS) / ERA_DAYS, (days + EPOCH_DAYS) % ERA_DAYS);
        let leap_days = day_of_era / 1460 + day_of_era / (ERA_DAYS - 1);
        let year_of_era = (day_of_era + day_of_era / 36_524 - leap_days) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            // 1970 began on a Thursday.
            weekday: (days + 4) % 7 + 1,
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }
}

/// The last two decimal digits of `value`, four bits each.
fn bcd(value: u64) -> u8 {
    let value = u8::try_from(value % 100).expect("less than 100");
    (value / 10) << 4 | (value % 10)
}

/// The clock.
#[derive(Debug)]
pub struct Rtc {
    index: u8,
    ram: [u8; RAM_BYTES],
    /// The instant that the fields show, as it was when the seconds were read.
    latched: Duration,
}

impl Default for Rtc {
    fn default() -> Self {
        Self { index: 0, ram: [0; RAM_BYTES], latched: Duration::ZERO }
    }
}

impl Rtc {
    /// A clock that shows the host's time.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn read_register(&mut self, now: Duration) -> u8 {
        match self.index {
            reg::A => REGISTER_A,
            reg::B => REGISTER_B,
            reg::C => 0,
            reg::D => REGISTER_D,
            index @ (0..reg::A | reg::CENTURY) => self.read_time(index, now),
            index => self.ram.get(usize::from(index)).copied().unwrap_or(0),
        }
    }

    fn read_time(&mut self, index: u8, now: Duration) -> u8 {
        let age = now.checked_sub(self.latched);
        if index == reg::SECONDS || age.is_none_or(|age| age >= Duration::from_secs(1)) {
            self.latched = now;
        }
        let time = CivilTime::from_unix(self.latched.as_secs());
        match index {
            reg::SECONDS => bcd(time.second),
            reg::MINUTES => bcd(time.minute),
            reg::HOURS => bcd(time.hour),
            reg::WEEKDAY => bcd(time.weekday),
            reg::DAY => bcd(time.day),
            reg::MONTH => bcd(time.month),
            reg::YEAR => bcd(time.year),
            reg::CENTURY => bcd(time.year / 100),
            // The alarm: there is none.
            _ => 0,
        }
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (1, [value]) = (offset, data) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            *value = self.read_register(now);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            // The top bit masks NMIs, which there are none of.
            (0, [value]) => self.index = value & 0x7f,
            (1, [value]) if self.index >= reg::RAM_START && self.index != reg::CENTURY => {
                self.ram[usize::from(self.index)] = *value;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
