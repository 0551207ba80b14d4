//! A transport as it is saved.

use serde::{Deserialize, Serialize};

use crate::virtio::SavedQueue;

/// The version of [`MmioTransportState`] that is written.
pub const MMIO_STATE_VERSION: u32 = 1;

/// A transport as it is saved, while its device is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioTransportState {
    /// [`MMIO_STATE_VERSION`] when it was saved.
    pub version: u32,
    /// The kind of device.
    pub device_type: u32,
    /// The features that were offered.
    pub device_features: u64,
    /// The features the driver accepted.
    pub driver_features: u64,
    /// `DeviceFeaturesSel`.
    pub device_features_select: u32,
    /// `DriverFeaturesSel`.
    pub driver_features_select: u32,
    /// `QueueSel`.
    pub queue_select: u32,
    /// `Status`, without `DEVICE_NEEDS_RESET`.
    pub status: u32,
    /// Whether the device has stopped until it is reset.
    pub needs_reset: bool,
    /// Whether the device served its queues and goes on with it.
    pub running: bool,
    /// `InterruptStatus`.
    pub interrupt_status: u32,
    /// `ConfigGeneration`.
    pub config_generation: u32,
    /// The queues.
    pub queues: Vec<SavedQueue>,
}

/// Why a saved transport could not be brought back.
#[derive(Debug, thiserror::Error)]
pub enum MmioRestoreError {
    /// The saved state is of a version that this program does not know.
    #[error("the device was saved in version {found}, and this program knows up to {MMIO_STATE_VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// The host gave no descriptor.
    #[error("cannot make the device's registers")]
    Host(#[from] std::io::Error),
    /// The device is of another kind, or has other queues.
    #[error("the saved device is not of the kind that is configured")]
    OtherDevice,
    /// The driver uses features that the device does not offer any more.
    #[error("the guest uses features {missing:#x} of the device that are not offered any more")]
    Features {
        /// The features that are missing.
        missing: u64,
    },
}
