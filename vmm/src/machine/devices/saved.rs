//! A VM's devices as they are saved, while it stands still.

use std::sync::{Arc, Mutex};

use devices::generation::GenerationState;
use devices::legacy::{I8042State, RtcState, SerialState};
use devices::virtio::block::{Block, BlockState};
use devices::virtio::mmio::MmioTransportState;
use devices::virtio::rng::{Entropy, EntropyState};
use serde::{Deserialize, Serialize};

use super::{Devices, lock};

/// A virtio device as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState {
    /// Its registers and queues.
    pub transport: MmioTransportState,
    /// The device behind them.
    pub device: VirtioDeviceState,
}

/// What is behind a transport, as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VirtioDeviceState {
    /// A drive.
    Block {
        /// Its name.
        drive_id: String,
        /// The device.
        state: BlockState,
    },
    /// The entropy device.
    Entropy(EntropyState),
}

/// All devices of a VM as they are saved, the virtio devices in the order of their slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesState {
    /// The virtio devices.
    pub virtio: Vec<VirtioState>,
    /// The serial port.
    pub serial: SerialState,
    /// The keyboard controller.
    pub keyboard: I8042State,
    /// The clock.
    pub clock: RtcState,
    /// What tells the guest that it is a clone.
    pub generation: GenerationState,
}

impl DevicesState {
    /// The drive of this name, as it was.
    #[must_use]
    pub fn drive(&self, id: &str) -> Option<&BlockState> {
        self.virtio.iter().find_map(|virtio| match &virtio.device {
            VirtioDeviceState::Block { drive_id, state } if drive_id == id => Some(state),
            _ => None,
        })
    }

    /// The entropy device, as it was.
    #[must_use]
    pub fn entropy(&self) -> Option<&EntropyState> {
        self.virtio.iter().find_map(|virtio| match &virtio.device {
            VirtioDeviceState::Entropy(state) => Some(state),
            VirtioDeviceState::Block { .. } => None,
        })
    }
}

/// A device behind a transport, to be saved.
#[derive(Debug)]
pub(super) enum Saveable {
    Block(String, Arc<Mutex<Block>>),
    Entropy(Arc<Mutex<Entropy>>),
}

impl Saveable {
    fn save(&self) -> VirtioDeviceState {
        match self {
            Self::Block(drive_id, block) => {
                VirtioDeviceState::Block { drive_id: drive_id.clone(), state: lock(block).save() }
            }
            Self::Entropy(entropy) => VirtioDeviceState::Entropy(lock(entropy).save()),
        }
    }
}

impl Devices {
    /// The devices as they are. They are to be paused: a device that runs has its queues to itself.
    #[must_use]
    pub fn save(&self) -> DevicesState {
        let virtio = self.virtio.iter().map(|virtio| VirtioState {
            transport: lock(&virtio.transport).save(),
            device: virtio.device.save(),
        });
        DevicesState {
            virtio: virtio.collect(),
            serial: lock(&self.serial).save(),
            keyboard: lock(&self.keyboard).save(),
            clock: lock(&self.clock).save(),
            generation: self.generation.state(),
        }
    }
}
