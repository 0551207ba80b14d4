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

#[test]
fn a_saved_clock_goes_on_elsewhere_and_shows_the_time_there() {
    let mut rtc = Rtc::new();
    rtc.write(0, &[0x40]);
    rtc.write(1, &[0x5a]);
    let last_ms = 1_735_689_599_900;
    assert_eq!(read(&mut rtc, reg::SECONDS, last_ms), 0x59);
    // Between the seconds and the rest, with the year selected.
    rtc.write(0, &[reg::YEAR]);
    let state = rtc.save();
    let mut moved = Rtc::restore(&state).unwrap();
    assert_eq!(moved.save(), state);
    assert_eq!(
        moved.read_register(Duration::from_millis(last_ms + 200)),
        0x24,
        "as it was when it was saved"
    );
    assert_eq!(moved.read_register(Duration::from_millis(last_ms + 2000)), 0x25, "the host's time");
    let mut back = Rtc::restore(&state).unwrap();
    assert_eq!(back.read_register(Duration::ZERO), 0x70, "a host whose clock is behind");
    assert_eq!(read(&mut back, 0x40, 0), 0x5a);
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let state = Rtc::new().save();
    let version = Rtc::restore(&RtcState { version: 2, ..state.clone() });
    assert_eq!(version.unwrap_err(), RtcRestoreError::Version { found: 2 });
    for state in [
        RtcState { ram: vec![0; RAM_BYTES - 1], ..state.clone() },
        RtcState { ram: vec![0; RAM_BYTES + 1], ..state.clone() },
        RtcState { index: 0x80, ..state },
    ] {
        assert_eq!(Rtc::restore(&state).unwrap_err(), RtcRestoreError::State);
    }
}
