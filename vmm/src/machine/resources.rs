//! What is configured before a start. Each file is opened when it is named, so that a mistake is told to the request
//! that made it, and nobody can take a drive away before the start.

use std::sync::{Arc, Mutex};

use api::types::{
    BootSource, CpuTemplate, Drive, DrivePatch, Entropy, Invalid, Logger, MachineConfig, MachineConfigPatch,
    Metrics, Serial, SerialOverride, SnapshotLoad, VmConfig,
};
use devices::metrics::BlockMetrics;
use devices::virtio::block::{Block, BlockConfig, BlockError, BlockState};

use super::device_config;
use super::devices::DevicesState;

use crate::arch::host::layout;
use crate::boot::{BootError, BootFiles};

/// Why something could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// The boot source.
    #[error("Boot source error: {0}")]
    Boot(#[from] BootError),
    /// A boot source that the contract does not allow.
    #[error("Boot source error: {0}")]
    InvalidBoot(Invalid),
    /// A machine that the contract does not allow.
    #[error("Machine config error: {0}")]
    InvalidMachine(Invalid),
    /// A drive that the contract does not allow.
    #[error("Drive config error: {0}")]
    InvalidDrive(Invalid),
    /// A second root device.
    #[error("Drive config error: A root block device already exists!")]
    SecondRoot,
    /// The file behind a drive.
    #[error("Drive config error: Unable to create the virtio block device: {0}")]
    Block(#[from] BlockError),
    /// A CPU template, which would be ignored where its user counts on it.
    #[error(
        "CPU templates are not supported: leave `cpu_template` out, and the guest sees what the host has"
    )]
    CpuTemplate,
    /// A drive of a snapshot that is not where it was.
    #[error(
        "Drive config error: the drive `{drive_id}` of the snapshot: {source}; name a copy of its disk in \
         `drive_overrides`, or free the disk"
    )]
    RestoredDrive {
        /// Which.
        drive_id: String,
        /// What is wrong with it.
        source: BlockError,
    },
    /// Another file for a drive that is not there.
    #[error("Drive config error: the snapshot has no drive `{0}`: `faultless snapshot inspect` lists them")]
    NoSuchDrive(String),
    /// More devices than there are interrupt lines.
    #[error("Drive config error: too many devices: a microVM has room for {}", layout::VIRTIO_DEVICES_MAX)]
    TooManyDevices,
}

/// A boot source and its open files.
#[derive(Debug)]
pub struct Boot {
    source: BootSource,
    /// What the guest is started from; none of one that was started elsewhere.
    pub files: Option<BootFiles>,
}

/// A drive and the file behind it.
#[derive(Debug)]
pub struct ConfiguredDrive {
    /// As it was asked for.
    pub config: Drive,
    /// Made, its file open and locked; a VM that is started takes a share in it.
    pub block: Arc<Mutex<Block>>,
    /// What it counts.
    pub metrics: BlockMetrics,
}

impl ConfiguredDrive {
    fn new(config: Drive) -> Result<Self, BlockError> {
        let metrics = BlockMetrics::default();
        let path = config.path_on_host.as_deref().expect("a drive was validated to have a path");
        let block_config = BlockConfig {
            path: path.into(),
            read_only: config.is_read_only.unwrap_or(false),
            cache: device_config::cache(config.cache_type),
            engine: device_config::engine(config.io_engine.unwrap_or_default()),
            limiter: device_config::limiter(config.rate_limiter.as_ref()),
        };
        let block = Block::new(&block_config, metrics.clone())?;
        Ok(Self { config, block: Arc::new(Mutex::new(block)), metrics })
    }

    /// The drive that `state` was saved from, on the file that `config` names.
    fn restore(config: Drive, state: &BlockState) -> Result<Self, BlockError> {
        let metrics = BlockMetrics::default();
        let path = config.path_on_host.as_ref().map_or(state.path.as_path(), AsRef::as_ref);
        let block = Block::restore_at(state, path, metrics.clone())?;
        Ok(Self { config, block: Arc::new(Mutex::new(block)), metrics })
    }
}

/// What a VM is to be made from.
#[derive(Debug, Default)]
pub struct Resources {
    /// Kernel, initrd and command line.
    pub boot: Option<Boot>,
    /// Processors and memory.
    pub machine: MachineConfig,
    is_machine_set: bool,
    /// Drives in the order of their interrupt lines, the root first.
    pub drives: Vec<ConfiguredDrive>,
    /// The entropy device.
    pub entropy: Option<Entropy>,
    /// The serial port's output.
    pub serial: Option<Serial>,
    /// Remembered to be told.
    pub logger: Option<Logger>,
    /// Remembered to be told.
    pub metrics: Option<Metrics>,
}

impl Resources {
    /// Sets what the guest is started from.
    ///
    /// # Errors
    ///
    /// [`ConfigureError::Boot`]; then the source set before stays.
    pub fn set_boot_source(&mut self, source: BootSource) -> Result<(), ConfigureError> {
        source.validate().map_err(ConfigureError::InvalidBoot)?;
        let files = BootFiles::open(&source)?;
        self.boot = Some(Boot { source, files: Some(files) });
        Ok(())
    }

    /// Replaces the machine's configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigureError::InvalidMachine`], or [`ConfigureError::CpuTemplate`].
    pub fn set_machine(&mut self, machine: MachineConfig) -> Result<(), ConfigureError> {
        machine.validate().map_err(ConfigureError::InvalidMachine)?;
        self.machine = without_template(machine)?;
        self.is_machine_set = true;
        Ok(())
    }

    /// Changes parts of the machine's configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigureError::InvalidMachine`] where the result would not be allowed; then nothing is changed.
    pub fn patch_machine(&mut self, patch: &MachineConfigPatch) -> Result<(), ConfigureError> {
        self.machine =
            without_template(self.machine.patched(patch).map_err(ConfigureError::InvalidMachine)?)?;
        self.is_machine_set = true;
        Ok(())
    }

    /// Adds a drive, or replaces the one of the same name.
    ///
    /// # Errors
    ///
    /// [`ConfigureError`]; then the drives are as before.
    pub fn set_drive(&mut self, config: Drive) -> Result<(), ConfigureError> {
        config.validate().map_err(ConfigureError::InvalidDrive)?;
        let place = self.drives.iter().position(|drive| drive.config.drive_id == config.drive_id);
        let other_root = self
            .drives
            .iter()
            .any(|drive| drive.config.is_root_device && drive.config.drive_id != config.drive_id);
        if config.is_root_device && other_root {
            return Err(ConfigureError::SecondRoot);
        }
        if place.is_none() && self.drives.len() + 1 > layout::VIRTIO_DEVICES_MAX - RESERVED_FOR_ENTROPY {
            return Err(ConfigureError::TooManyDevices);
        }
        // The drive that is replaced gives its lock back first: the new one may be the same file.
        let replaced = place.map(|index| self.drives.remove(index).config);
        match ConfiguredDrive::new(config) {
            Ok(drive) => {
                let at = if drive.config.is_root_device { 0 } else { place.unwrap_or(self.drives.len()) };
                self.drives.insert(at, drive);
                Ok(())
            }
            Err(error) => {
                if let (Some(index), Some(config)) = (place, replaced) {
                    self.drives.insert(index, ConfiguredDrive::new(config)?);
                }
                Err(error.into())
            }
        }
    }

    /// Notes a change that a running drive has taken.
    pub fn note_drive_patch(&mut self, patch: &DrivePatch) {
        let drive = self.drives.iter_mut().find(|drive| drive.config.drive_id == patch.drive_id);
        if let Some(ConfiguredDrive { config, .. }) = drive {
            config.path_on_host = patch.path_on_host.clone().or(config.path_on_host.take());
            if let Some(changed) = patch.rate_limiter {
                let limiter = config.rate_limiter.get_or_insert_default();
                limiter.bandwidth = changed.bandwidth.or(limiter.bandwidth);
                limiter.ops = changed.ops.or(limiter.ops);
            }
        }
    }

    /// What a snapshot was made of: its `config`, with the drives in the state of `devices`, and other files where
    /// `load` names some.
    ///
    /// # Errors
    ///
    /// [`ConfigureError`] of a drive that cannot be had.
    pub fn restored(
        config: VmConfig,
        devices: &DevicesState,
        load: &SnapshotLoad,
    ) -> Result<Self, ConfigureError> {
        let is_there = |id: &str| config.drives.iter().any(|drive| drive.drive_id == id);
        if let Some(stray) = load.drive_overrides.iter().find(|drive| !is_there(&drive.drive_id)) {
            return Err(ConfigureError::NoSuchDrive(stray.drive_id.clone()));
        }
        let drives = config.drives.into_iter().map(|drive| restored_drive(drive, devices, load));
        let serial = match &load.serial_override {
            Some(SerialOverride { serial_out_path }) => {
                let serial_out_path = serial_out_path.clone();
                Some(Serial { serial_out_path, ..config.serial.unwrap_or_default() })
            }
            None => config.serial,
        };
        Ok(Self {
            boot: config.boot_source.map(|source| Boot { source, files: None }),
            machine: config.machine_config.unwrap_or_default(),
            drives: drives.collect::<Result<_, _>>()?,
            entropy: config.entropy,
            serial,
            ..Self::default()
        })
    }

    /// Whether anything was set that a snapshot brings with it.
    #[must_use]
    pub fn are_for_boot(&self) -> bool {
        self.boot.is_some() || self.is_machine_set || !self.drives.is_empty() || self.entropy.is_some()
    }

    /// All of it, as the contract tells it.
    #[must_use]
    pub fn to_config(&self) -> VmConfig {
        VmConfig {
            drives: self.drives.iter().map(|drive| drive.config.clone()).collect(),
            boot_source: self.boot.as_ref().map(|boot| boot.source.clone()),
            logger: self.logger.clone(),
            machine_config: Some(self.machine.clone()),
            metrics: self.metrics.clone(),
            entropy: self.entropy.clone(),
            serial: self.serial.clone(),
            ..VmConfig::default()
        }
    }
}

/// One line is kept for the entropy device, whenever it is configured.
const RESERVED_FOR_ENTROPY: usize = 1;

/// A drive of a snapshot, on the file that `load` names for it, or on the one that it was on.
fn restored_drive(
    mut drive: Drive,
    devices: &DevicesState,
    load: &SnapshotLoad,
) -> Result<ConfiguredDrive, ConfigureError> {
    let id = drive.drive_id.clone();
    let state = devices.drive(&id).ok_or_else(|| ConfigureError::NoSuchDrive(id.clone()))?;
    if let Some(other) = load.drive_overrides.iter().find(|other| other.drive_id == id) {
        drive.path_on_host = Some(other.path_on_host.clone());
    }
    ConfiguredDrive::restore(drive, state)
        .map_err(|source| ConfigureError::RestoredDrive { drive_id: id, source })
}

fn without_template(machine: MachineConfig) -> Result<MachineConfig, ConfigureError> {
    match machine.cpu_template {
        None | Some(CpuTemplate::None) => Ok(machine),
        Some(_) => Err(ConfigureError::CpuTemplate),
    }
}
