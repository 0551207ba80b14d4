//! A whole machine in one document: the answer to `GET /vm/config`, and the file given with `--config-file`.
//!
//! The sections are the bodies of the requests, under kebab-case names. The contract has more sections than this
//! program supports; those are answered as empty, and in a file accepted only when empty, so that a machine is never
//! started without a device its owner asked for.

use super::{BootSource, Drive, Entropy, Invalid, Logger, MachineConfig, Metrics, Serial};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Sections of the contract that are not supported yet.
const UNSUPPORTED: [&str; 7] =
    ["balloon", "cpu-config", "memory-hotplug", "mmds-config", "network-interfaces", "pmem", "vsock"];

/// Everything a machine is made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schema(as = FullVmConfiguration)]
pub struct VmConfig {
    /// Not supported; always null.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub balloon: NoObject,
    /// Block devices, the root device first if there is one.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// Kernel, command line and initial RAM disk.
    #[serde(default)]
    pub boot_source: Option<BootSource>,
    /// Not supported; always null.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub cpu_config: NoObject,
    /// The log.
    #[serde(default)]
    pub logger: Option<Logger>,
    /// vCPUs and memory; 1 vCPU and 128 MiB when absent.
    #[serde(default)]
    pub machine_config: Option<MachineConfig>,
    /// The metrics file.
    #[serde(default)]
    pub metrics: Option<Metrics>,
    /// Not supported; always null.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub mmds_config: NoObject,
    /// Not supported; always empty.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    pub network_interfaces: NoList,
    /// Not supported; always null.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub vsock: NoObject,
    /// The entropy device.
    #[serde(default)]
    pub entropy: Option<Entropy>,
    /// Not supported; always empty.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    pub pmem: NoList,
    /// The serial port.
    #[serde(default)]
    pub serial: Option<Serial>,
    /// Not supported; always null.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub memory_hotplug: NoObject,
}

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or JSON of another shape.
    #[error("the configuration file cannot be read: {0}; correct it and start again")]
    Json(#[from] serde_json::Error),
    /// A section that would have to be ignored.
    #[error(
        "the section {0:?} of the configuration file is not supported yet: remove it, or leave it null or empty"
    )]
    Unsupported(&'static str),
    /// Values that the contract forbids.
    #[error("the configuration file is refused: {0}")]
    Invalid(#[from] Invalid),
}

impl VmConfig {
    /// Reads and checks a configuration file's content.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ConfigError> {
        let sections: Map<String, Value> = serde_json::from_slice(bytes)?;
        for name in UNSUPPORTED {
            if sections.get(name).is_some_and(|section| !is_empty(section)) {
                return Err(ConfigError::Unsupported(name));
            }
        }
        let config: Self = serde_json::from_slice(bytes)?;
        config.validate()?;
        Ok(config)
    }

    /// Refuses what the requests for the single sections would refuse.
    pub fn validate(&self) -> Result<(), Invalid> {
        if let Some(boot_source) = &self.boot_source {
            boot_source.validate()?;
        }
        if let Some(machine_config) = &self.machine_config {
            machine_config.validate()?;
        }
        self.drives.iter().try_for_each(Drive::validate)
    }
}

/// Whether a section asks for nothing.
fn is_empty(section: &Value) -> bool {
    match section {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// A section that is written as `null`, whatever was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoObject;

/// A section that is written as `[]`, whatever was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoList;

impl Serialize for NoObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_none()
    }
}

impl<'de> Deserialize<'de> for NoObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl Serialize for NoList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(std::iter::empty::<()>())
    }
}

impl<'de> Deserialize<'de> for NoList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

#[cfg(test)]
mod tests;
