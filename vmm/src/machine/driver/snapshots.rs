//! Going on from files.
//!
//! A diff is over what the machine was last saved to or loaded from. Of a machine that never was, or where it
//! [cannot be](crate::snapshot::lineage), the whole is saved in its place: it loads as well, and no base is needed.

use api::Reply;
use api::types::{SnapshotHandler, SnapshotLoad};

use super::{Driver, RequestError};
use crate::arch::host::state::ClockPolicy;
use crate::machine::build::BuildError;
use crate::machine::devices::DeviceError;
use crate::machine::resources::{ConfigureError, Resources};
use crate::machine::restore;
use crate::machine::vm::VmError;
use crate::snapshot::load::{LoadError, Loaded};

/// Why a machine cannot go on from files. Nothing of it is left in the process then, which ends.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The files.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A device.
    #[error("Failed to restore from snapshot: Failed to restore devices")]
    Configure(#[from] ConfigureError),
    /// The VM.
    #[error("Failed to restore from snapshot")]
    Build(#[from] BuildError),
}

impl Driver {
    /// Has another process serve the memory, in place of the one that did.
    pub(super) fn replace_handler(&mut self, handler: &SnapshotHandler) -> Result<Reply, RequestError> {
        handler.validate().map_err(RequestError::Snapshot)?;
        let handed = self.vm_mut().memory.handed_mut().ok_or(RequestError::NoHandler)?;
        handed.replace(handler.backend_path.as_ref())?;
        self.publication.publish_handler(None);
        Ok(Reply::Empty)
    }

    /// Goes on from files, where nothing was configured that they bring with them.
    pub(super) fn load_snapshot(&mut self, load: &SnapshotLoad) -> Result<Reply, RequestError> {
        load.validate().map_err(RequestError::Snapshot)?;
        if self.resources.are_for_boot() {
            return Err(RequestError::Configured);
        }
        match self.restore(load) {
            Ok(()) => Ok(Reply::Empty),
            Err(error) => {
                // As with Firecracker: what is left of a restore that failed is not tried again.
                self.is_spent = true;
                Err(error)
            }
        }
    }

    fn restore(&mut self, load: &SnapshotLoad) -> Result<(), RequestError> {
        let backend = load.backend().map_err(RequestError::Snapshot)?;
        let (loaded, mut plan) = Loaded::open(load, &backend).map_err(RestoreError::from)?;
        let saved = &loaded.saved;
        let restored = Resources::restored(saved.config.clone(), &saved.devices, load);
        let mut resources = restored.map_err(RestoreError::from)?;
        resources.logger = self.resources.logger.take();
        resources.metrics = self.resources.metrics.take();
        if load.serial_override.is_none() {
            resources.serial = self.resources.serial.take().or(resources.serial);
        }
        resources.machine.track_dirty_pages = load.tracks_dirty_pages();
        let clock = if load.clock_realtime { ClockPolicy::Realtime } else { ClockPolicy::Continue };
        let mut vm = restore::restore(saved, &resources, &mut plan, &self.options, &self.notifier, clock)
            .map_err(RestoreError::from)?;
        // It is one of those that may go on from these files, and is to know before it runs.
        vm.devices.generation().renew().map_err(DeviceError::from).map_err(VmError::from)?;
        if load.resume_vm {
            vm.resume()?;
        } else {
            vm.memory.fill();
        }
        vm.memory.fill();
        vm.register_metrics(&mut self.metrics);
        self.vm = Some(vm);
        self.resources = resources;
        self.lineage = Some(loaded.lineage);
        self.take_terminal();
        tracing::info!(state = load.snapshot_path, "the microVM is restored");
        Ok(())
    }
}
