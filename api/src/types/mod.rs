//! One type per body of the contract, with the names, defaults and strictness it has on the wire.
//!
//! Paths are `String`, not `PathBuf`: JSON can carry nothing but UTF-8, and a type that cannot hold anything else
//! makes rendering infallible. Sizes keep their wire names, which carry the unit.

mod action;
mod boot_source;
mod drive;
mod entropy;
mod id;
mod instance;
mod limiter;
mod logger;
mod machine;
mod metrics;
mod serial;
mod snapshot;
mod vm_config;

pub use action::{Action, ActionBody, VmBody, VmState};
pub use boot_source::BootSource;
pub use drive::{CacheType, Drive, DrivePatch, IoEngine};
pub use entropy::Entropy;
pub use id::{check_instance_id, check_resource_id};
pub use instance::{FaultBody, InstanceInfo, InstanceState, Version};
pub use limiter::{RateLimiter, TokenBucket};
pub use logger::{LogLevel, Logger};
pub use machine::{CpuTemplate, HugePages, MachineConfig, MachineConfigPatch, VCPU_COUNT_MAX};
pub use metrics::Metrics;
pub use serial::Serial;
pub use snapshot::{
    DriveOverride, LazyOptions, MemBackend, MemBackendType, NetworkOverride, RestoredHugePages,
    SerialOverride, SnapshotCreate, SnapshotHandler, SnapshotLoad, SnapshotType, VsockOverride,
};
pub use vm_config::{ConfigError, NoList, NoObject, VmConfig};

/// A body that is well-formed JSON of the right shape, but whose values the contract forbids.
///
/// Clients match on some of these texts, which is why they start with a capital and end with a full stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The path or the body names a resource with an empty id.
    #[error("The ID cannot be empty.")]
    EmptyId,
    /// A resource id with a character outside `[A-Za-z0-9_]`.
    #[error("API Resource IDs can only contain alphanumeric characters and underscores.")]
    IdCharacters,
    /// The id in the path and the one in the body differ.
    #[error("The id from the path does not match the id from the body!")]
    IdMismatch,
    /// No vCPU, too many, or an odd number of them with SMT.
    #[error(
        "The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled."
    )]
    VcpuCount,
    /// No memory, or a size that the page size does not divide.
    #[error("The memory size (MiB) is either 0, or not a multiple of the configured page size.")]
    MemorySize,
    /// SMT was asked for where the architecture has none.
    #[error("Enabling simultaneous multithreading is not supported on aarch64.")]
    Smt,
    /// A drive without a backing file.
    #[error("The drive has no path_on_host: name the file or block device that backs it.")]
    DrivePath,
    /// A drive served by another process.
    #[error("vhost-user drives are not supported: give path_on_host instead of socket.")]
    DriveSocket,
    /// A kernel path of no characters.
    #[error("The kernel_image_path is empty: name an ELF kernel or a bzImage.")]
    KernelPath,
    /// A snapshot in a file without a name.
    #[error("A path of the snapshot is empty: name a state file and a memory file.")]
    SnapshotPath,
    /// Both parts of a snapshot in one file.
    #[error("The snapshot_path and the mem_file_path are the same: name two files.")]
    OneSnapshotFile,
    /// Somebody who cannot be reached.
    #[error("The backend_path is empty: name the socket of the process that serves the memory.")]
    HandlerPath,
    /// Memory from two places.
    #[error("too many fields: either `mem_backend` or `mem_file_path` exclusively is required")]
    TwoMemBackends,
    /// Memory from nowhere.
    #[error("missing field: either `mem_backend` or `mem_file_path` is required")]
    NoMemBackend,
    /// Another interface for a device that cannot be.
    #[error("Network devices are not supported yet: leave network_overrides out.")]
    NetworkOverride,
    /// Another socket for a device that cannot be.
    #[error("The vsock device is not supported yet: leave vsock_override out.")]
    VsockOverride,
    /// Two files for one drive.
    #[error("The drive {0} is overridden twice: name one file for it.")]
    OverriddenTwice(String),
    /// How to serve what is served by others.
    #[error("The field lazy is for a mem_backend of the type Lazy: leave it out, or change the type.")]
    LazyOptions,
}
