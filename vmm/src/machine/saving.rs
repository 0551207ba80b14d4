//! From a VM that stands still to what of it is saved.

use super::resources::Resources;
use super::vm::{Vm, VmError};
use crate::arch::host::state::PlatformState;
use crate::snapshot::save::{SaveError, Taken};

impl Vm {
    /// All of it but its memory. It is to stand still, and may go on when this returns.
    ///
    /// # Errors
    ///
    /// [`SaveError`] of the first part that gives no state.
    pub fn take(&mut self, resources: &Resources) -> Result<Taken, SaveError> {
        // What is pending on its way from a device to the controllers may be in neither: devices raise it again when they
        // are restored.
        let vcpus = self.vcpus.save(&self.extent).map_err(VmError::from)?;
        Ok(Taken {
            config: resources.to_config(),
            host: self.host.clone(),
            platform: PlatformState::save(&self.vm)?,
            vcpus,
            devices: self.devices.save(),
        })
    }
}
