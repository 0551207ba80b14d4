//! What is in a state file: the sections, each decoded into what it is of.
//!
//! | section | body |
//! |---|---|
//! | `meta` | [`Meta`] |
//! | `config` | JSON, as `GET /vm/config` answers it |
//! | `host`, `platform`, `vcpu/N` | what the architecture saves |
//! | `block/N`, `entropy/N` | a [`VirtioState`]; N is the slot, over all kinds |
//! | `serial`, … | the device's own saved type |
//! | `memory` | [`MemoryState`] |
//!
//! Bodies but that of `config` are encoded by postcard. A body that changes gets another version in the section table,
//! and what is read in an older one is converted here.

use std::path::PathBuf;

use api::types::VmConfig;
use memory::RamRange;
use memory::image::Contents;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

use super::file::{Builder, Kind, SnapshotId, StateFile};
use crate::arch::host::state::{HostFacts, PlatformState, VcpuState};
use crate::machine::devices::{DevicesState, VirtioDeviceState, VirtioState};

/// The version of every body that this program writes and does not number itself.
const VERSION: u16 = 1;
/// How many virtio slots and vCPUs are looked for: more than any machine has.
const INSTANCES_MAX: u16 = 64;

/// Who saved a machine, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The version of the program.
    pub vmm_version: String,
    /// The name of the instance.
    pub instance_id: String,
    /// When, in milliseconds since 1970.
    pub saved_unix_ms: u64,
}

/// The snapshot that a diff is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its id.
    pub id: [u8; 16],
    /// Where its state file was.
    pub state_path: PathBuf,
    /// Where its memory file was.
    pub memory_path: PathBuf,
}

/// The memory of a machine, but for its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryState {
    /// The regions: guest physical address and length in bytes.
    pub regions: Vec<(u64, u64)>,
    /// What the memory file has.
    pub contents: Contents,
    /// What is below it, where it is a diff.
    pub parent: Option<Parent>,
}

impl MemoryState {
    /// The regions as RAM is made of them.
    #[must_use]
    pub fn ranges(&self) -> Vec<RamRange> {
        let range = |&(gpa, size_bytes): &(u64, u64)| RamRange { gpa: GuestAddress(gpa), size_bytes };
        self.regions.iter().map(range).collect()
    }
}

/// A machine as it is in a state file.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// Its id.
    pub id: SnapshotId,
    /// Who saved it.
    pub meta: Meta,
    /// What it was configured as.
    pub config: VmConfig,
    /// The host it ran on.
    pub host: HostFacts,
    /// Interrupt controllers, timer, clock.
    pub platform: PlatformState,
    /// The vCPUs, in their order.
    pub vcpus: Vec<VcpuState>,
    /// The devices.
    pub devices: DevicesState,
    /// The memory.
    pub memory: MemoryState,
}

/// Why sections are no machine.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// One is not there.
    #[error("the state file has no section {0}: it was not written whole; use another copy")]
    Missing(Kind),
    /// One is of a version that this program does not know.
    #[error(
        "the section {kind} was written in version {found}, and this program reads up to {known}: use a newer one"
    )]
    Version {
        /// Which.
        kind: Kind,
        /// Its version.
        found: u16,
        /// The last that is known.
        known: u16,
    },
    /// One cannot be decoded.
    #[error("the section {kind} of the state file makes no sense: use another copy")]
    Body {
        /// Which.
        kind: Kind,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Parts do not fit each other.
    #[error("the state file contradicts itself: {0}; use another copy")]
    Contradiction(&'static str),
}

impl Saved {
    /// The sections.
    #[must_use]
    pub fn encode(&self) -> Builder {
        let mut builder = Builder::new(self.id);
        add(&mut builder, Kind::META, VERSION, 0, &self.meta);
        let config = serde_json::to_vec(&self.config).expect("the contract's types have string keys only");
        builder.add(Kind::CONFIG, VERSION, 0, config);
        add(&mut builder, Kind::HOST, VERSION, 0, &self.host);
        add(&mut builder, Kind::PLATFORM, PlatformState::VERSION, 0, &self.platform);
        for (index, vcpu) in (0..).zip(&self.vcpus) {
            add(&mut builder, Kind::VCPU, VcpuState::VERSION, index, vcpu);
        }
        for (slot, virtio) in (0..).zip(&self.devices.virtio) {
            add(&mut builder, kind_of(&virtio.device), VERSION, slot, virtio);
        }
        add(&mut builder, Kind::DEVICE_SERIAL, VERSION, 0, &self.devices.serial);
        add(&mut builder, Kind::DEVICE_I8042, VERSION, 0, &self.devices.keyboard);
        add(&mut builder, Kind::DEVICE_RTC, VERSION, 0, &self.devices.clock);
        add(&mut builder, Kind::DEVICE_GENERATION, VERSION, 0, &self.devices.generation);
        add(&mut builder, Kind::MEMORY, VERSION, 0, &self.memory);
        builder
    }

    /// The machine that is in `file`.
    ///
    /// # Errors
    ///
    /// [`DecodeError`].
    pub fn decode(file: &StateFile) -> Result<Self, DecodeError> {
        let saved = Self {
            id: file.header().id,
            meta: take(file, Kind::META, VERSION)?,
            config: config(file)?,
            host: take(file, Kind::HOST, VERSION)?,
            platform: take(file, Kind::PLATFORM, PlatformState::VERSION)?,
            vcpus: instances(file, Kind::VCPU, VcpuState::VERSION)?,
            devices: DevicesState {
                virtio: virtio(file)?,
                serial: take(file, Kind::DEVICE_SERIAL, VERSION)?,
                keyboard: take(file, Kind::DEVICE_I8042, VERSION)?,
                clock: take(file, Kind::DEVICE_RTC, VERSION)?,
                generation: take(file, Kind::DEVICE_GENERATION, VERSION)?,
            },
            memory: take(file, Kind::MEMORY, VERSION)?,
        };
        saved.check()?;
        Ok(saved)
    }

    /// Refuses a machine whose parts do not fit each other.
    fn check(&self) -> Result<(), DecodeError> {
        let machine = self.config.machine_config.as_ref();
        let machine = machine.ok_or(DecodeError::Contradiction("it has no machine configuration"))?;
        if self.vcpus.len() != usize::from(machine.vcpu_count) {
            return Err(DecodeError::Contradiction(
                "it has another number of vCPUs than it is configured for",
            ));
        }
        let drives = self.config.drives.iter().filter(|drive| self.devices.drive(&drive.drive_id).is_some());
        let entropy = usize::from(self.config.entropy.is_some());
        let is_entropy = entropy == usize::from(self.devices.entropy().is_some());
        let virtio = self.config.drives.len() + entropy;
        if drives.count() != self.config.drives.len() || !is_entropy || self.devices.virtio.len() != virtio {
            return Err(DecodeError::Contradiction("it has other devices than it is configured for"));
        }
        let bytes = self.memory.regions.iter().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
        if bytes != machine.mem_size_mib.saturating_mul(1 << 20) {
            return Err(DecodeError::Contradiction(
                "its memory is of another size than it is configured for",
            ));
        }
        if self.memory.contents.pages().bytes() != bytes {
            return Err(DecodeError::Contradiction("its memory file is of another size than its memory"));
        }
        Ok(())
    }
}

fn kind_of(device: &VirtioDeviceState) -> Kind {
    match device {
        VirtioDeviceState::Block { .. } => Kind::DEVICE_BLOCK,
        VirtioDeviceState::Entropy(_) => Kind::DEVICE_ENTROPY,
    }
}

fn add<T: Serialize>(builder: &mut Builder, kind: Kind, version: u16, instance: u16, body: &T) {
    let body = postcard::to_stdvec(body).expect("saved types have lengths that are known");
    builder.add(kind, version, instance, body);
}

fn take<T: DeserializeOwned>(file: &StateFile, kind: Kind, version: u16) -> Result<T, DecodeError> {
    take_instance(file, kind, version, 0)?.ok_or(DecodeError::Missing(kind))
}

fn take_instance<T: DeserializeOwned>(
    file: &StateFile,
    kind: Kind,
    known: u16,
    instance: u16,
) -> Result<Option<T>, DecodeError> {
    let Some(section) = file.section(kind, instance) else { return Ok(None) };
    if section.version != known {
        return Err(DecodeError::Version { kind, found: section.version, known });
    }
    match postcard::take_from_bytes(section.body) {
        Ok((value, [])) => Ok(Some(value)),
        Ok(_) => Err(DecodeError::Body { kind, source: "it is longer than what is in it".into() }),
        Err(error) => Err(DecodeError::Body { kind, source: Box::new(error) }),
    }
}

/// The instances of `kind` from the first on, as far as they are there.
fn instances<T: DeserializeOwned>(file: &StateFile, kind: Kind, known: u16) -> Result<Vec<T>, DecodeError> {
    (0..INSTANCES_MAX).map_while(|instance| take_instance(file, kind, known, instance).transpose()).collect()
}

/// The virtio devices, slot after slot, each of whatever kind it is.
fn virtio(file: &StateFile) -> Result<Vec<VirtioState>, DecodeError> {
    let device = |slot| {
        [Kind::DEVICE_BLOCK, Kind::DEVICE_ENTROPY]
            .into_iter()
            .find_map(|kind| take_instance(file, kind, VERSION, slot).transpose())
    };
    (0..INSTANCES_MAX).map_while(device).collect()
}

fn config(file: &StateFile) -> Result<VmConfig, DecodeError> {
    let kind = Kind::CONFIG;
    let section = file.section(kind, 0).ok_or(DecodeError::Missing(kind))?;
    if section.version != VERSION {
        return Err(DecodeError::Version { kind, found: section.version, known: VERSION });
    }
    VmConfig::from_json(section.body).map_err(|error| DecodeError::Body { kind, source: Box::new(error) })
}
