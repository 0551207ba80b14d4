//! The device status register as a pure function (virtio 1.2, 2.1 and 3.1.1).
//!
//! ```text
//!   0 ──► ACKNOWLEDGE ──► DRIVER ──► FEATURES_OK ──► DRIVER_OK        any ──► FAILED
//!   ▲                                    │  only if the features fit      any ──► 0: reset
//!   └────────────────────────────────────┴──────────────────────────────────┘
//! ```
//!
//! A driver sets bits and never clears one, except all of them. What it may not do changes nothing.

use virtio_bindings::virtio_config as bit;

/// The driver has seen the device.
pub(super) const ACKNOWLEDGE: u32 = bit::VIRTIO_CONFIG_S_ACKNOWLEDGE;
/// The driver knows how to drive it.
pub(super) const DRIVER: u32 = bit::VIRTIO_CONFIG_S_DRIVER;
/// The driver is ready.
pub(super) const DRIVER_OK: u32 = bit::VIRTIO_CONFIG_S_DRIVER_OK;
/// The features are agreed on.
pub(super) const FEATURES_OK: u32 = bit::VIRTIO_CONFIG_S_FEATURES_OK;
/// The device has stopped; the only bit that the device sets.
pub(super) const NEEDS_RESET: u32 = bit::VIRTIO_CONFIG_S_NEEDS_RESET;
/// The driver has given up.
pub(super) const FAILED: u32 = bit::VIRTIO_CONFIG_S_FAILED;

const DRIVER_BITS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;

/// What the transport has to do after a write of the status register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    None,
    /// Reset the device.
    Reset,
    /// Start the device.
    Start,
    /// Stop the device: its driver has given up.
    Stop,
}

/// The status after the driver wrote `written` while it was `current`, and what is to be done. `features_fit` says
/// whether the features the driver has accepted are ones it may.
pub(super) fn next(current: u32, written: u32, features_fit: bool) -> (u32, Action) {
    if written == 0 {
        return (0, Action::Reset);
    }
    let written = written & DRIVER_BITS;
    if written & current != current || current & FAILED != 0 {
        return (current, Action::None);
    }
    if written & FAILED != 0 {
        return (current | FAILED, Action::Stop);
    }
    let mut status = current | written & (ACKNOWLEDGE | DRIVER);
    if written & FEATURES_OK != 0 && status & (ACKNOWLEDGE | DRIVER) == ACKNOWLEDGE | DRIVER && features_fit {
        status |= FEATURES_OK;
    }
    if written & DRIVER_OK != 0 && status & FEATURES_OK != 0 {
        status |= DRIVER_OK;
    }
    let starts = status & !current & DRIVER_OK != 0;
    (status, if starts { Action::Start } else { Action::None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_a_driver_takes() {
        let (status, action) = next(0, ACKNOWLEDGE, false);
        assert_eq!((status, action), (1, Action::None));
        let (status, action) = next(status, status | DRIVER, false);
        assert_eq!((status, action), (3, Action::None));
        assert_eq!(
            next(status, status | FEATURES_OK, false),
            (3, Action::None),
            "features it was not offered"
        );
        let (status, action) = next(status, status | FEATURES_OK, true);
        assert_eq!((status, action), (11, Action::None));
        let (status, action) = next(status, status | DRIVER_OK | NEEDS_RESET, true);
        assert_eq!((status, action), (15, Action::Start));
        assert_eq!(next(status, status, true), (15, Action::None), "it starts once");
        assert_eq!(next(status, status | FAILED, true), (0x8f, Action::Stop));
        assert_eq!(next(0x8f, 0x8f, true), (0x8f, Action::None));
        assert_eq!(next(0x8f, 0, true), (0, Action::Reset));
    }

    /// Every state that can be reached, against every value that can be written.
    #[test]
    fn no_way_around() {
        let mut reached = vec![0_u32];
        let mut next_index = 0;
        while let Some(&current) = reached.get(next_index) {
            next_index += 1;
            for written in (0..=0xff).chain([0x100, u32::MAX, 0x8000_0000]) {
                for features_fit in [false, true] {
                    let (status, action) = next(current, written, features_fit);
                    assert!(written == 0 || status & current == current, "bits are never cleared one by one");
                    assert_eq!(action == Action::Reset, written == 0);
                    let started = status & !current & DRIVER_OK != 0;
                    assert_eq!(action == Action::Start, started);
                    assert!(status & DRIVER_OK == 0 || status & FEATURES_OK != 0);
                    let agreed = status & !current & FEATURES_OK != 0;
                    assert!(!agreed || features_fit && status & 3 == 3);
                    if !reached.contains(&status) {
                        reached.push(status);
                    }
                }
            }
        }
        assert!(reached.iter().all(|status| status & !DRIVER_BITS == 0));
        assert!(reached.contains(&15));
    }
}
