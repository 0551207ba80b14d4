//! `PUT /snapshot/create` and `PUT /snapshot/load`: a machine in files, and back.

use super::{Invalid, check_resource_id};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What of the memory is saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum SnapshotType {
    /// All of it.
    #[default]
    Full,
    /// What was written since the machine was last saved or loaded.
    Diff,
}

/// Where a machine is saved to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SnapshotCreateParams)]
pub struct SnapshotCreate {
    /// What of the memory is saved.
    #[serde(default)]
    #[schema(default = "Full")]
    pub snapshot_type: SnapshotType,
    /// Path on the host of the state file: all of the machine but its memory.
    pub snapshot_path: String,
    /// Path on the host of the memory file.
    pub mem_file_path: String,
    /// Whether the guest goes on while its memory is written; what is saved is the machine as it was when the request
    /// was taken. An addition to the contract.
    #[serde(default, skip_serializing_if = "is_false")]
    #[schema(default = false)]
    pub live: bool,
}

impl SnapshotCreate {
    /// Refuses files that cannot be written.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.snapshot_path.is_empty() || self.mem_file_path.is_empty() {
            return Err(Invalid::SnapshotPath);
        }
        if self.snapshot_path == self.mem_file_path {
            return Err(Invalid::OneSnapshotFile);
        }
        Ok(())
    }
}

/// Who serves a guest's memory while it is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum MemBackendType {
    /// The memory file is mapped.
    File,
    /// Another process does, through a userfaultfd that it is handed.
    Uffd,
    /// This process does: the guest runs at once, and its pages come as they are wanted. An addition to the contract.
    Lazy,
}

/// Where a guest's memory comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = MemoryBackend)]
pub struct MemBackend {
    /// Who serves it.
    pub backend_type: MemBackendType,
    /// Path on the host of the memory file, or of the socket of the process that serves it.
    pub backend_path: String,
}

/// Another process that is to serve the guest's memory. An addition to the contract.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SnapshotHandler)]
pub struct SnapshotHandler {
    /// Path on the host of the socket that it listens on.
    pub backend_path: String,
}

impl SnapshotHandler {
    /// Refuses a path of no characters.
    pub fn validate(&self) -> Result<(), Invalid> {
        if self.backend_path.is_empty() { Err(Invalid::HandlerPath) } else { Ok(()) }
    }
}

/// What backs the guest's memory after a restore.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum RestoredHugePages {
    /// What backed it when it was saved.
    #[default]
    Snapshot,
    /// Pages of the host's base size.
    None,
    /// The host may use huge pages where it has them free.
    Transparent,
    /// Reserved pages of 2 MiB from hugetlbfs.
    #[serde(rename = "2M")]
    Hugetlb2M,
}

/// Another host interface for a network device of the snapshot. Not supported yet: there are no network devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkOverride {
    /// The device.
    pub iface_id: String,
    /// The interface.
    pub host_dev_name: String,
}

/// Another socket for the vsock device of the snapshot. Not supported yet: there is no vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockOverride {
    /// The socket.
    pub uds_path: String,
}

/// Another file for a drive of the snapshot. An addition to the contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveOverride {
    /// The drive.
    pub drive_id: String,
    /// Path on the host of its file or block device, with the content that the guest knows.
    pub path_on_host: String,
}

/// Another place for what the guest says. An addition to the contract.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SerialOverride {
    /// File or named pipe that gets the guest's output; standard output when absent.
    pub serial_out_path: Option<String>,
}

/// How a `Lazy` backend serves. An addition to the contract.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LazyOptions {
    /// How fast memory that nobody asks for is read, in MiB each second; 0 leaves it until it is wanted, and without a
    /// number there is no limit.
    pub fill_mib_s: Option<u64>,
    /// Whether the pages that are wanted first are recorded beside the memory file, and placed first the next time;
    /// `true` when absent.
    pub working_set: Option<bool>,
}

/// A machine that is to go on from its files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SnapshotLoadParams)]
pub struct SnapshotLoad {
    /// Path on the host of the state file.
    pub snapshot_path: String,
    /// Where the memory comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_backend: Option<MemBackend>,
    /// Deprecated: the path of a `File` backend. Using it makes the answer carry `Deprecation: true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_file_path: Option<String>,
    /// Whether the host tracks which pages the guest writes, for diff snapshots.
    #[serde(default)]
    #[schema(default = false)]
    pub track_dirty_pages: bool,
    /// Deprecated: the former name of `track_dirty_pages`.
    #[serde(default, skip_serializing_if = "is_false")]
    #[schema(default = false)]
    pub enable_diff_snapshots: bool,
    /// Whether the guest runs when the request is answered.
    #[serde(default)]
    #[schema(default = false)]
    pub resume_vm: bool,
    /// Network devices with other interfaces. None are supported yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
    /// The vsock device with another socket. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    /// Whether the guest's clock goes on at the time it is, and not where it stopped. x86_64, Linux 5.16 and later.
    #[serde(default, skip_serializing_if = "is_false")]
    #[schema(default = false)]
    pub clock_realtime: bool,
    /// What backs the guest's memory.
    #[serde(default, skip_serializing_if = "is_snapshot")]
    #[schema(default = "Snapshot")]
    pub huge_pages: RestoredHugePages,
    /// Drives with other files. An addition to the contract.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drive_overrides: Vec<DriveOverride>,
    /// Another place for what the guest says. An addition to the contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_override: Option<SerialOverride>,
    /// How a `Lazy` backend serves. An addition to the contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lazy: Option<LazyOptions>,
}

impl SnapshotLoad {
    /// Where the memory comes from, by whichever name it was given.
    ///
    /// # Errors
    ///
    /// [`Invalid`] where it was given by none, or by both.
    pub fn backend(&self) -> Result<MemBackend, Invalid> {
        match (&self.mem_backend, &self.mem_file_path) {
            (Some(backend), None) => Ok(backend.clone()),
            (None, Some(path)) => {
                Ok(MemBackend { backend_type: MemBackendType::File, backend_path: path.clone() })
            }
            (Some(_), Some(_)) => Err(Invalid::TwoMemBackends),
            (None, None) => Err(Invalid::NoMemBackend),
        }
    }

    /// Whether it says something by a name that the contract is about to drop.
    #[must_use]
    pub fn is_deprecated(&self) -> bool {
        self.mem_file_path.is_some() || self.enable_diff_snapshots
    }

    /// Whether dirty pages are tracked, by whichever name that was asked for.
    #[must_use]
    pub fn tracks_dirty_pages(&self) -> bool {
        self.track_dirty_pages || self.enable_diff_snapshots
    }

    /// Refuses what no host could restore.
    pub fn validate(&self) -> Result<(), Invalid> {
        let backend = self.backend()?;
        if self.snapshot_path.is_empty() || backend.backend_path.is_empty() {
            return Err(Invalid::SnapshotPath);
        }
        if !self.network_overrides.is_empty() {
            return Err(Invalid::NetworkOverride);
        }
        if self.vsock_override.is_some() {
            return Err(Invalid::VsockOverride);
        }
        if self.lazy.is_some() && backend.backend_type != MemBackendType::Lazy {
            return Err(Invalid::LazyOptions);
        }
        for (index, drive) in self.drive_overrides.iter().enumerate() {
            if self.drive_overrides[..index].iter().any(|other| other.drive_id == drive.drive_id) {
                return Err(Invalid::OverriddenTwice(drive.drive_id.clone()));
            }
            check_resource_id(&drive.drive_id)?;
            if drive.path_on_host.is_empty() {
                return Err(Invalid::DrivePath);
            }
        }
        Ok(())
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_false(value: &bool) -> bool {
    !value
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_snapshot(pages: &RestoredHugePages) -> bool {
    *pages == RestoredHugePages::Snapshot
}
