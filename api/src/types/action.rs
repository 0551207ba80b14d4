//! `PUT /actions` and `PATCH /vm`: what is done to a machine, as opposed to what it is made of.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An operation without parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Action {
    /// Write the metrics to their file now.
    FlushMetrics,
    /// Boot the machine as configured; only once.
    InstanceStart,
    /// Press Ctrl+Alt+Del on the guest's keyboard, which Linux takes as a request to shut down. x86_64 only.
    SendCtrlAltDel,
}

/// The body of `PUT /actions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = InstanceActionInfo)]
pub struct ActionBody {
    /// What to do.
    pub action_type: Action,
}

/// The state a started machine is asked to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum VmState {
    /// Stop all vCPUs and devices; memory and connections stay.
    Paused,
    /// Go on from where it was paused.
    Resumed,
}

/// The body of `PATCH /vm`. Unknown fields are ignored here, as the contract has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Vm)]
pub struct VmBody {
    /// The state to take.
    pub state: VmState,
}
