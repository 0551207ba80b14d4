//! The VMClock's page (Linux 6.18, `include/uapi/linux/vmclock-abi.h`; UAPI.13). Pure: what is to be written, and where.
//!
//! No clock is in it. It tells of disruptions only, so a guest keeps the time that KVM's own clock gives it.
//!
//! UAPI.13 puts two flags and the last field elsewhere than the header does. The header is what drivers are built from.

use serde::{Deserialize, Serialize};

use super::Disruption;

/// The size of the page in bytes. Linux passes it on to its user space from this size up.
pub const PAGE_BYTES: u32 = 4096;

/// "VCLK".
const MAGIC: u32 = 0x4b4c_4356;
const VERSION: u16 = 1;
/// `VMCLOCK_COUNTER_INVALID`: there is no clock here, so neither a counter that it could be calculated from.
const COUNTER_INVALID: u8 = 0xff;
/// `VMCLOCK_TIME_TAI`, which UAPI.13 recommends.
const TIME_TAI: u8 = 1;
/// `VMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT`.
const FLAG_GENERATION_COUNTER: u64 = 1 << 8;
/// `VMCLOCK_FLAG_NOTIFICATION_PRESENT`: an interrupt follows each change.
const FLAG_NOTIFICATION: u64 = 1 << 9;

/// The offsets in bytes of the fields that are not always zero, all of them little-endian.
pub(super) mod offset {
    pub(crate) const MAGIC: usize = 0x00;
    pub(crate) const SIZE: usize = 0x04;
    pub(crate) const VERSION: usize = 0x08;
    pub(crate) const COUNTER_ID: usize = 0x0a;
    pub(crate) const TIME_TYPE: usize = 0x0b;
    pub(crate) const SEQ_COUNT: usize = 0x0c;
    pub(crate) const DISRUPTION_MARKER: usize = 0x10;
    pub(crate) const FLAGS: usize = 0x18;
    pub(crate) const GENERATION_COUNTER: usize = 0x68;
}

/// What changes in the page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockCounters {
    /// Even, or odd while the others change.
    pub seq_count: u32,
    /// Changes when the guest's counters of time are no longer what they were.
    pub disruption_marker: u64,
    /// Changes when the guest is no longer the only one with its past.
    pub generation_counter: u64,
}

impl ClockCounters {
    /// Those that are to be seen after `disruption`.
    pub(super) fn after(self, disruption: Disruption) -> Self {
        let generations = match disruption {
            Disruption::Moved => 0,
            Disruption::Cloned => 1,
        };
        Self {
            seq_count: self.changing().wrapping_add(1),
            disruption_marker: self.disruption_marker.wrapping_add(1),
            generation_counter: self.generation_counter.wrapping_add(generations),
        }
    }

    /// The sequence count that says that a change is under way.
    pub(super) fn changing(self) -> u32 {
        self.seq_count | 1
    }

    /// The whole page.
    pub(super) fn page(self) -> [u8; PAGE_BYTES as usize] {
        let mut page = [0; PAGE_BYTES as usize];
        let mut put = |offset: usize, bytes: &[u8]| page[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(offset::MAGIC, &MAGIC.to_le_bytes());
        put(offset::SIZE, &PAGE_BYTES.to_le_bytes());
        put(offset::VERSION, &VERSION.to_le_bytes());
        put(offset::COUNTER_ID, &[COUNTER_INVALID]);
        put(offset::TIME_TYPE, &[TIME_TAI]);
        put(offset::SEQ_COUNT, &self.seq_count.to_le_bytes());
        put(offset::DISRUPTION_MARKER, &self.disruption_marker.to_le_bytes());
        put(offset::FLAGS, &(FLAG_GENERATION_COUNTER | FLAG_NOTIFICATION).to_le_bytes());
        put(offset::GENERATION_COUNTER, &self.generation_counter.to_le_bytes());
        page
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// `struct vmclock_abi`, field by field.
    #[repr(C)]
    struct VmclockAbi {
        magic: u32,
        size: u32,
        version: u16,
        counter_id: u8,
        time_type: u8,
        seq_count: u32,
        disruption_marker: u64,
        flags: u64,
        pad: [u8; 2],
        clock_status: u8,
        leap_second_smearing_hint: u8,
        tai_offset_sec: i16,
        leap_indicator: u8,
        counter_period_shift: u8,
        counter_value: u64,
        counter_period_frac_sec: u64,
        counter_period_esterror_rate_frac_sec: u64,
        counter_period_maxerror_rate_frac_sec: u64,
        time_sec: u64,
        time_frac_sec: u64,
        time_esterror_nanosec: u64,
        time_maxerror_nanosec: u64,
        vm_generation_counter: u64,
    }

    #[test]
    fn fields_are_where_the_header_has_them() {
        assert_eq!(offset::MAGIC, offset_of!(VmclockAbi, magic));
        assert_eq!(offset::SIZE, offset_of!(VmclockAbi, size));
        assert_eq!(offset::VERSION, offset_of!(VmclockAbi, version));
        assert_eq!(offset::COUNTER_ID, offset_of!(VmclockAbi, counter_id));
        assert_eq!(offset::TIME_TYPE, offset_of!(VmclockAbi, time_type));
        assert_eq!(offset::SEQ_COUNT, offset_of!(VmclockAbi, seq_count));
        assert_eq!(offset::DISRUPTION_MARKER, offset_of!(VmclockAbi, disruption_marker));
        assert_eq!(offset::FLAGS, offset_of!(VmclockAbi, flags));
        assert_eq!(offset::GENERATION_COUNTER, offset_of!(VmclockAbi, vm_generation_counter));
    }

    #[test]
    fn a_page_is_what_a_driver_checks_for_and_no_clock() {
        let counters = ClockCounters { seq_count: 2, disruption_marker: 3, generation_counter: 4 };
        let page = counters.page();
        let mut expected = vec![0; 4096];
        expected[..0x20].copy_from_slice(
            b"VCLK\x00\x10\x00\x00\x01\x00\xff\x01\x02\x00\x00\x00\x03\0\0\0\0\0\0\0\x00\x03\0\0\0\0\0\0",
        );
        expected[0x68] = 4;
        assert_eq!(page[..], expected[..]);
    }

    #[test]
    fn a_change_is_odd_while_it_lasts_and_even_after() {
        let start = ClockCounters::default();
        assert_eq!(start.changing(), 1);
        let moved = start.after(Disruption::Moved);
        assert_eq!(moved, ClockCounters { seq_count: 2, disruption_marker: 1, generation_counter: 0 });
        let cloned = moved.after(Disruption::Cloned);
        assert_eq!(cloned, ClockCounters { seq_count: 4, disruption_marker: 2, generation_counter: 1 });
    }

    #[test]
    fn counters_wrap_and_a_change_that_was_cut_off_is_finished() {
        let full = u64::MAX;
        let last =
            ClockCounters { seq_count: u32::MAX - 1, disruption_marker: full, generation_counter: full };
        assert_eq!(last.after(Disruption::Cloned), ClockCounters::default());
        let cut_off = ClockCounters { seq_count: 5, ..ClockCounters::default() };
        assert_eq!((cut_off.changing(), cut_off.after(Disruption::Moved).seq_count), (5, 6));
    }
}
