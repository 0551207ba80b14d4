//! A keyboard controller as it is saved.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{BUFFER_BYTES_MAX, I8042, STATUS_COMMAND, STATUS_KEYBOARD_UNLOCKED, STATUS_SYSTEM};
use crate::interrupt::Interrupt;
use crate::legacy::power::PowerCallback;
use crate::metrics::I8042Metrics;

/// The version of [`I8042State`] that is written.
pub const I8042_STATE_VERSION: u32 = 1;

/// A keyboard controller as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    /// [`I8042_STATE_VERSION`] when it was saved.
    pub version: u32,
    /// The command byte, as command 0x20 reads it.
    pub control: u8,
    /// The output port, as command 0xd0 reads it.
    pub output_port: u8,
    /// The status register, but for the bit that says whether there is output.
    pub status: u8,
    /// A command whose byte of data has not come yet.
    pub pending: Option<u8>,
    /// Bytes that the guest has not read, at most 16.
    pub output: Vec<u8>,
}

/// Why a saved keyboard controller could not be brought back.
#[derive(Debug, thiserror::Error)]
pub enum I8042RestoreError {
    /// The saved state is of a version that this program does not know.
    #[error(
        "the keyboard controller was saved in version {found}, and this program knows up to {I8042_STATE_VERSION}: \
         restore with the program that saved it"
    )]
    Version {
        /// The version found.
        found: u32,
    },
    /// The saved state is not one that a keyboard controller can be in.
    #[error("the saved keyboard controller is in no state that can be: take the snapshot again")]
    State,
    /// The guest could not be told of what it has not read.
    #[error("cannot raise the keyboard's interrupt: see whether the host is out of descriptors or memory")]
    Interrupt(#[source] io::Error),
}

impl I8042 {
    /// The controller as it is now.
    #[must_use]
    pub fn save(&self) -> I8042State {
        I8042State {
            version: I8042_STATE_VERSION,
            control: self.control,
            output_port: self.output_port,
            status: self.status,
            pending: self.pending,
            output: self.buffer.iter().copied().collect(),
        }
    }

    /// The controller that `state` was saved from. The rest is as for [`new`](Self::new).
    ///
    /// It interrupts the guest if there is something to read. So the interrupt controller is to be restored before
    /// it, or forgets that again.
    ///
    /// # Errors
    ///
    /// [`I8042RestoreError`] when the state is of an unknown version or impossible, or the guest cannot be told.
    pub fn restore(
        state: &I8042State,
        notify: PowerCallback,
        interrupt: Arc<dyn Interrupt>,
        metrics: I8042Metrics,
    ) -> Result<Self, I8042RestoreError> {
        if state.version != I8042_STATE_VERSION {
            return Err(I8042RestoreError::Version { found: state.version });
        }
        let status_bits = STATUS_SYSTEM | STATUS_COMMAND | STATUS_KEYBOARD_UNLOCKED;
        if state.output.len() > BUFFER_BYTES_MAX || state.status & !status_bits != 0 {
            return Err(I8042RestoreError::State);
        }
        let mut device = Self::new(notify, interrupt, metrics);
        (device.control, device.output_port) = (state.control, state.output_port);
        (device.status, device.pending) = (state.status, state.pending);
        device.buffer.extend(&state.output);
        // The edge may have been lost on the way to the guest, and a driver looks whether there is output.
        if !device.buffer.is_empty() {
            device.raise().map_err(I8042RestoreError::Interrupt)?;
        }
        Ok(device)
    }
}
