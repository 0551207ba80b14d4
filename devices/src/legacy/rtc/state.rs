//! A clock as it is saved: what the guest told it. The time is the host's, where it is restored.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{RAM_BYTES, Rtc};

/// The version of [`RtcState`] that is written.
pub const RTC_STATE_VERSION: u32 = 1;

/// The largest index, as the top bit of what is written to the port is no part of it.
const INDEX_MAX: u8 = 0x7f;

/// A clock as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// [`RTC_STATE_VERSION`] when it was saved.
    pub version: u32,
    /// The register that is selected.
    pub index: u8,
    /// The RAM, 128 bytes; those below the clock's registers are zero.
    pub ram: Vec<u8>,
    /// The instant that the fields showed, in nanoseconds after 1970 began. It holds for a second, as ever: a guest
    /// that goes on later reads the time then.
    pub latched_ns: u64,
}

/// Why a saved clock could not be brought back.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RtcRestoreError {
    /// The saved state is of a version that this program does not know.
    #[error(
        "the clock was saved in version {found}, and this program knows up to {RTC_STATE_VERSION}: \
         restore with the program that saved it"
    )]
    Version {
        /// The version found.
        found: u32,
    },
    /// The saved state is not one that a clock can be in.
    #[error("the saved clock is in no state that can be: take the snapshot again")]
    State,
}

impl Rtc {
    /// The clock as it is now.
    #[must_use]
    pub fn save(&self) -> RtcState {
        RtcState {
            version: RTC_STATE_VERSION,
            index: self.index,
            ram: self.ram.to_vec(),
            // Enough until 2554, and after that the latch is merely taken for old.
            latched_ns: u64::try_from(self.latched.as_nanos()).unwrap_or(0),
        }
    }

    /// The clock that `state` was saved from.
    ///
    /// # Errors
    ///
    /// [`RtcRestoreError`] when the state is of an unknown version or impossible.
    pub fn restore(state: &RtcState) -> Result<Self, RtcRestoreError> {
        if state.version != RTC_STATE_VERSION {
            return Err(RtcRestoreError::Version { found: state.version });
        }
        let ram: Result<[u8; RAM_BYTES], _> = state.ram.as_slice().try_into();
        match ram {
            Ok(ram) if state.index <= INDEX_MAX => {
                Ok(Self { index: state.index, ram, latched: Duration::from_nanos(state.latched_ns) })
            }
            _ => Err(RtcRestoreError::State),
        }
    }
}
