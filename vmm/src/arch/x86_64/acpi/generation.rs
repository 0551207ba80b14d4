//! How a guest finds its generation ID and its VMClock, and learns of a change of either.
//!
//! ```text
//!   line ─▶ GED (ACPI 6.5, section 5.6.9) ─_EVT─▶ Notify (VGEN, 0x80)   generation ID, at what ADDR says
//!                                             └─▶ Notify (VCLK, 0x80)   VMClock, at what _CRS says
//! ```
//!
//! One line is enough for both: whoever is notified looks whether anything of its own has changed. A hardware-reduced
//! platform has no general purpose events, so that a Generic Event Device is the only way to a notification.

use acpi_tables::{Aml, aml};
use devices::generation::CLOCK_PAGE_BYTES;

use crate::arch::x86_64::layout;

const GENERATION_PATH: &str = "\\_SB_.VGEN";
const CLOCK_PATH: &str = "\\_SB_.VCLK";
/// What Linux's driver is found by (`drivers/virt/vmgenid.c`), as Microsoft's paper has it.
const GENERATION_NAME: &str = "VM_Gen_Counter";
/// What the VMClock's is found by (`drivers/ptp/ptp_vmclock.c`).
const CLOCK_NAME: &str = "VMCLOCK";
/// "Status changed", in both papers.
const CHANGED: u8 = 0x80;

/// Describes the three devices.
pub(super) fn devices(body: &mut Vec<u8>) {
    generation_id(body);
    clock(body);
    events(body);
}

fn generation_id(body: &mut Vec<u8>) {
    let address = layout::VM_GENERATION_ID.0;
    let (low, high) = (address & u64::from(u32::MAX), address >> 32);
    aml::Device::new(
        GENERATION_PATH.into(),
        vec![
            &aml::Name::new("_HID".into(), &"FLTL0001"),
            &aml::Name::new("_CID".into(), &GENERATION_NAME),
            &aml::Name::new("_DDN".into(), &GENERATION_NAME),
            &aml::Name::new("ADDR".into(), &aml::Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(body);
}

fn clock(body: &mut Vec<u8>) {
    let base = u32::try_from(layout::VM_CLOCK.0).expect("the VMClock lies below 1 MiB");
    let page = aml::Memory32Fixed::new(false, base, CLOCK_PAGE_BYTES);
    aml::Device::new(
        CLOCK_PATH.into(),
        vec![
            &aml::Name::new("_HID".into(), &"AMZNC10C"),
            &aml::Name::new("_CID".into(), &CLOCK_NAME),
            &aml::Name::new("_DDN".into(), &CLOCK_NAME),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&page])),
        ],
    )
    .to_aml_bytes(body);
}

fn events(body: &mut Vec<u8>) {
    let line = aml::Interrupt::new(true, true, false, false, layout::GENERATION_GSI);
    let (generation, clock) = (aml::Path::new(GENERATION_PATH), aml::Path::new(CLOCK_PATH));
    let (generation, clock) = (aml::Notify::new(&generation, &CHANGED), aml::Notify::new(&clock, &CHANGED));
    let is_the_line = aml::Equal::new(&aml::Arg(0), &layout::GENERATION_GSI);
    let notify = aml::If::new(&is_the_line, vec![&generation, &clock]);
    aml::Device::new(
        "_SB_.GED_".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_UID".into(), &0_u8),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&line])),
            &aml::Method::new("_EVT".into(), 1, true, vec![&notify]),
        ],
    )
    .to_aml_bytes(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What follows the only occurrence of `mark`.
    fn after<'a>(body: &'a [u8], mark: &[u8]) -> &'a [u8] {
        let mut places = body.windows(mark.len()).enumerate().filter(|(_, bytes)| *bytes == mark);
        let (at, _) = places.next().unwrap_or_else(|| panic!("no {mark:x?}"));
        assert!(places.next().is_none(), "{mark:x?} is there twice");
        &body[at + mark.len()..]
    }

    fn body() -> Vec<u8> {
        let mut body = Vec::new();
        devices(&mut body);
        body
    }

    #[test]
    fn addresses_are_told_as_drivers_read_them() {
        let body = body();
        let address = after(&body, b"ADDR\x12");
        // The package's length in bytes, two elements, a DWORD and ZeroOp.
        let low = u32::try_from(layout::VM_GENERATION_ID.0).unwrap().to_le_bytes();
        assert_eq!(address[..8], [&[8, 2, 0x0c][..], &low, &[0]].concat()[..]);
        // Memory32Fixed (ACPI 6.5, section 6.4.3.4), read-only.
        let clock = after(&body, b"\x86\x09\x00\x00");
        let base = u32::try_from(layout::VM_CLOCK.0).unwrap().to_le_bytes();
        assert_eq!(clock[..8], [base, 4096_u32.to_le_bytes()].concat()[..]);
    }

    #[test]
    fn the_line_notifies_both_devices() {
        let body = body();
        let gsi = u8::try_from(layout::GENERATION_GSI).unwrap();
        // Extended interrupt (ACPI 6.5, section 6.4.3.6): consumer, edge, active high, exclusive.
        let line = after(&body, b"\x89\x06\x00");
        assert_eq!(line[..6], [0b0011, 1, gsi, 0, 0, 0]);
        // One argument, serialized; If (Arg0 == line), and the length in bytes of that.
        let event = after(&body, b"_EVT\x09\xa0");
        assert_eq!(event[1..5], [0x93, 0x68, 0x0a, gsi]);
        let notifications = b"\x86\\\x2e_SB_VGEN\x0a\x80\x86\\\x2e_SB_VCLK\x0a\x80";
        assert_eq!(event[5..], notifications[..]);
    }
}
