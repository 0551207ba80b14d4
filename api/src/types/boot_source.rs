//! `PUT /boot-source`: what the guest starts with.

use super::Invalid;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Kernel, command line and initial RAM disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// Path on the host of the kernel: an uncompressed ELF or, on x86_64, a bzImage.
    pub kernel_image_path: String,
    /// Path on the host of the initial RAM disk.
    pub initrd_path: Option<String>,
    /// The kernel command line; a default one when absent.
    pub boot_args: Option<String>,
}

impl BootSource {
    /// Refuses what no host could serve.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.kernel_image_path.is_empty() {
            return Err(Invalid::KernelPath);
        }
        Ok(())
    }
}
