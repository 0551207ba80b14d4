//! The MC146818 real-time clock of a PC, and the RAM that comes with it.
//!
//! A guest writes a register's number to port 0x70 and reads or writes its value at 0x71. The clock shows the host's
//! time (UTC), in BCD and 24 hours, and cannot be set: what a guest writes to it is ignored. No interrupt is
//! connected.
//!
//! Invariant: the fields that follow a read of the seconds, within a second, are of the same instant. So a guest
//! never reads an hour that was over when its minutes began.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bus::BusDevice;

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
mod tests {
    use super::*;

    fn civil(unix_s: u64) -> [u64; 7] {
        let time = CivilTime::from_unix(unix_s);
        [time.year, time.month, time.day, time.weekday, time.hour, time.minute, time.second]
    }

    #[test]
    fn known_instants() {
        assert_eq!(civil(0), [1970, 1, 1, 5, 0, 0, 0]);
        assert_eq!(civil(951_782_399), [2000, 2, 28, 2, 23, 59, 59]);
        assert_eq!(civil(951_782_400), [2000, 2, 29, 3, 0, 0, 0]);
        assert_eq!(civil(1_000_000_000), [2001, 9, 9, 1, 1, 46, 40]);
        assert_eq!(civil(1_735_689_599), [2024, 12, 31, 3, 23, 59, 59]);
        assert_eq!(civil(4_107_542_400), [2100, 3, 1, 2, 0, 0, 0], "2100 is no leap year");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let is_leap =
            |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..365 * 500 {
            let [y, m, d, weekday, ..] = civil(days * 86_400 + 86_399);
            assert_eq!((y, m, d, weekday), (year, month, day, (days + 4) % 7 + 1));
            let length = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            day += 1;
            if day > length[usize::try_from(month).unwrap() - 1] {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }

    fn read(rtc: &mut Rtc, index: u8, now_ms: u64) -> u8 {
        rtc.write(0, &[index]);
        rtc.read_register(Duration::from_millis(now_ms))
    }

    #[test]
    fn fields_are_bcd_and_of_the_instant_whose_seconds_were_read() {
        let mut rtc = Rtc::new();
        let last_ms = 1_735_689_599_900;
        assert_eq!(read(&mut rtc, reg::SECONDS, last_ms), 0x59);
        let fields = [reg::MINUTES, reg::HOURS, reg::WEEKDAY, reg::DAY, reg::MONTH, reg::YEAR, reg::CENTURY];
        let values = fields.map(|field| read(&mut rtc, field, last_ms + 200));
        assert_eq!(values, [0x59, 0x23, 0x03, 0x31, 0x12, 0x24, 0x20], "the year is over, but was not then");
        assert_eq!(read(&mut rtc, reg::YEAR, last_ms + 1000), 0x25, "an old latch is not used");
        assert_eq!(read(&mut rtc, reg::SECONDS, last_ms - 60_000), 0x59, "the host's clock may go back");
    }

    #[test]
    fn the_clock_cannot_be_set_and_the_ram_keeps_what_is_written() {
        let mut rtc = Rtc::new();
        for index in 0..=u8::MAX {
            rtc.write(0, &[index]);
            rtc.write(1, &[index ^ 0x55]);
        }
        assert_eq!(read(&mut rtc, reg::A, 0), REGISTER_A);
        assert_eq!(read(&mut rtc, reg::B, 0), REGISTER_B);
        assert_eq!(read(&mut rtc, reg::C, 0), 0);
        assert_eq!(read(&mut rtc, reg::D, 0), REGISTER_D);
        assert_eq!(read(&mut rtc, reg::CENTURY, 0), 0x19);
        assert_eq!(read(&mut rtc, 0x7f, 0), 0xff ^ 0x55);
        let mut wide = [0; 2];
        BusDevice::read(&mut rtc, 1, &mut wide);
        assert_eq!(wide, [0xff; 2], "ports are a byte wide");
    }
}
