//! What is answered, before it becomes HTTP.

use crate::types::{FaultBody, InstanceInfo, Invalid, MachineConfig, Version, VmConfig};
use hyper::StatusCode;
use serde::Serialize;

/// Content type of every JSON body.
const JSON: &str = "application/json";
/// Content type of the metrics for scraping. Prometheus picks its parser by it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The answer to a request that was done.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Done, and there is nothing to say: 204.
    Empty,
    /// To `GET /`.
    InstanceInfo(InstanceInfo),
    /// To `GET /version`: the release of the contract.
    Version(String),
    /// To `GET /vm/config`.
    VmConfig(Box<VmConfig>),
    /// To `GET /machine-config`.
    MachineConfig(MachineConfig),
    /// To `GET /metrics/prometheus`: metrics in the OpenMetrics text format.
    Prometheus(String),
}

/// Bytes with the name of their format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Payload {
    /// Value of the `Content-Type` header.
    pub(crate) content_type: &'static str,
    /// The body.
    pub(crate) bytes: Vec<u8>,
}

impl Payload {
    fn json<T: Serialize>(value: &T) -> Self {
        let bytes = serde_json::to_vec(value).expect("the types of the contract have string keys only");
        Self { content_type: JSON, bytes }
    }
}

impl Reply {
    /// The body, or none for [`Reply::Empty`].
    pub(crate) fn payload(self) -> Option<Payload> {
        Some(match self {
            Self::Empty => return None,
            Self::InstanceInfo(info) => Payload::json(&info),
            Self::Version(firecracker_version) => Payload::json(&Version { firecracker_version }),
            Self::VmConfig(config) => Payload::json(&config),
            Self::MachineConfig(config) => Payload::json(&config),
            Self::Prometheus(text) => Payload { content_type: OPEN_METRICS, bytes: text.into_bytes() },
        })
    }
}

/// A refusal: the status code and the sentence that goes into `fault_message`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// 400 for nearly everything, as the contract has it.
    pub status: StatusCode,
    /// What is wrong, for a person.
    pub message: String,
}

impl Fault {
    /// A refusal with status 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    /// The body that says it.
    pub(crate) fn payload(self) -> Payload {
        Payload::json(&FaultBody { fault_message: self.message })
    }
}

impl From<Invalid> for Fault {
    fn from(invalid: Invalid) -> Self {
        Self::bad_request(invalid.to_string())
    }
}

impl From<serde_json::Error> for Fault {
    fn from(error: serde_json::Error) -> Self {
        Self::bad_request(format!(
            "An error occurred when deserializing the json body of a request: {error}."
        ))
    }
}
