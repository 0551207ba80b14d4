//! Answers: what a caller learns about the instance, and why something was refused.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum InstanceState {
    /// Configured at most; no guest code has run.
    #[serde(rename = "Not started")]
    NotStarted,
    /// vCPUs run.
    Running,
    /// vCPUs and devices are stopped, and can go on.
    Paused,
}

/// The answer to `GET /`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceInfo {
    /// Name of the program.
    pub app_name: String,
    /// The instance's id, as given with `--id`.
    pub id: String,
    /// Where the machine is in its life.
    pub state: InstanceState,
    /// Why the machine cannot go on, where it cannot; it is `Paused` for good then. An addition to the contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// What has become of the process that served the guest's memory, where it has gone: the guest waits where it
    /// misses a page, until `PUT /snapshot/handler` names another. An addition to the contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handler_failure: Option<String>,
    /// Version of the program.
    pub vmm_version: String,
}

/// The answer to `GET /version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = FirecrackerVersion)]
pub struct Version {
    /// The release of the contract that is spoken.
    pub firecracker_version: String,
}

/// The body of every refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Error)]
pub struct FaultBody {
    /// What is wrong with the request.
    pub fault_message: String,
}
