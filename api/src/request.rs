//! What can be asked, and how it is written: method, path and body in, [`Request`] out, and back.
//!
//! Both directions are pure. The server parses, the client renders, and a property test holds them together.

use crate::Fault;
use crate::types::{
    Action, ActionBody, BootSource, Drive, DrivePatch, Entropy, Invalid, Logger, MachineConfig,
    MachineConfigPatch, Metrics, Serial, SnapshotCreate, SnapshotHandler, SnapshotLoad, VmBody, VmState,
    check_resource_id,
};
use hyper::Method;
use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};

/// One operation of the contract, with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// `GET /`
    GetInstanceInfo,
    /// `GET /version`
    GetVersion,
    /// `GET /vm/config`
    GetVmConfig,
    /// `GET /machine-config`
    GetMachineConfig,
    /// `GET /metrics/prometheus`
    GetPrometheus,
    /// `PUT /boot-source`
    PutBootSource(BootSource),
    /// `PUT /machine-config`
    PutMachineConfig(MachineConfig),
    /// `PATCH /machine-config`
    PatchMachineConfig(MachineConfigPatch),
    /// `PUT /drives/{drive_id}`
    PutDrive(Drive),
    /// `PATCH /drives/{drive_id}`
    PatchDrive(DrivePatch),
    /// `PUT /entropy`
    PutEntropy(Entropy),
    /// `PUT /serial`
    PutSerial(Serial),
    /// `PUT /logger`
    PutLogger(Logger),
    /// `PUT /metrics`
    PutMetrics(Metrics),
    /// `PUT /actions`
    PutAction(Action),
    /// `PATCH /vm`
    PatchVm(VmState),
    /// `PUT /snapshot/create`
    CreateSnapshot(SnapshotCreate),
    /// `PUT /snapshot/load`
    LoadSnapshot(Box<SnapshotLoad>),
    /// `PUT /snapshot/handler`
    PutSnapshotHandler(SnapshotHandler),
}

/// A request, and whether it used something the contract is about to drop.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The request.
    pub request: Request,
    /// Whether the answer carries `Deprecation: true`.
    pub deprecated: bool,
}

impl From<Request> for Parsed {
    fn from(request: Request) -> Self {
        Self { request, deprecated: false }
    }
}

/// The segments of a path: the collection, what is named in it, and whether more follows.
///
/// Leading slashes and one trailing slash do not count.
struct Segments<'a> {
    first: &'a str,
    second: Option<&'a str>,
    is_longer: bool,
}

impl<'a> Segments<'a> {
    fn of(path: &'a str) -> Self {
        let mut segments = path.trim_start_matches('/').split_terminator('/');
        Self {
            first: segments.next().unwrap_or_default(),
            second: segments.next(),
            is_longer: segments.next().is_some(),
        }
    }

    /// The id of a resource in a collection, checked.
    fn id(&self) -> Result<&'a str, Invalid> {
        let id = self.second.unwrap_or_default();
        check_resource_id(id)?;
        Ok(id)
    }

    /// No operation has this path. Clients match on the text, which names the first segment only.
    fn refuse(&self, method: &Method) -> Fault {
        Fault::bad_request(format!("Invalid request method and/or path: {method} {}.", self.first))
    }
}

impl Request {
    /// Reads a request. `path` is without query; an absent body is an empty one.
    pub fn parse(method: &Method, path: &str, body: &[u8]) -> Result<Parsed, Fault> {
        let segments = Segments::of(path);
        if segments.is_longer {
            return Err(segments.refuse(method));
        }
        match (method, body.is_empty()) {
            (&Method::GET, true) => Self::parse_get(&segments).map(Parsed::from),
            (&Method::GET, false) => Err(Fault::bad_request("GET request cannot have a body.")),
            (&Method::PUT, false) => Self::parse_put(&segments, body),
            (&Method::PATCH, false) => Self::parse_patch(&segments, body),
            (&Method::PUT | &Method::PATCH, true) => Err(empty(method)),
            _ => Err(segments.refuse(method)),
        }
    }

    fn parse_get(segments: &Segments<'_>) -> Result<Self, Fault> {
        match (segments.first, segments.second) {
            ("", None) => Ok(Self::GetInstanceInfo),
            ("version", None) => Ok(Self::GetVersion),
            ("vm", Some("config")) => Ok(Self::GetVmConfig),
            ("machine-config", None) => Ok(Self::GetMachineConfig),
            ("metrics", Some("prometheus")) => Ok(Self::GetPrometheus),
            _ => Err(segments.refuse(&Method::GET)),
        }
    }

    fn parse_put(segments: &Segments<'_>, body: &[u8]) -> Result<Parsed, Fault> {
        let request = match (segments.first, segments.second) {
            ("drives", _) => Self::parse_put_drive(segments.id()?, body)?,
            ("snapshot", Some("create")) => Self::CreateSnapshot(json(body)?),
            ("snapshot", Some("handler")) => Self::PutSnapshotHandler(json(body)?),
            ("snapshot", Some("load")) => return Self::parse_load_snapshot(body),
            (_, Some(_)) => return Err(segments.refuse(&Method::PUT)),
            ("machine-config", None) => return Self::parse_put_machine_config(body),
            ("actions", None) => Self::PutAction(json::<ActionBody>(body)?.action_type),
            ("boot-source", None) => Self::PutBootSource(json(body)?),
            ("entropy", None) => Self::PutEntropy(json(body)?),
            ("serial", None) => Self::PutSerial(json(body)?),
            ("logger", None) => Self::PutLogger(json(body)?),
            ("metrics", None) => Self::PutMetrics(json(body)?),
            _ => return Err(segments.refuse(&Method::PUT)),
        };
        Ok(request.into())
    }

    fn parse_patch(segments: &Segments<'_>, body: &[u8]) -> Result<Parsed, Fault> {
        match (segments.first, segments.second) {
            ("drives", _) => Ok(Self::parse_patch_drive(segments.id()?, body)?.into()),
            ("machine-config", None) => Self::parse_patch_machine_config(body),
            ("vm", None) => Ok(Self::PatchVm(json::<VmBody>(body)?.state).into()),
            _ => Err(segments.refuse(&Method::PATCH)),
        }
    }

    fn parse_put_machine_config(body: &[u8]) -> Result<Parsed, Fault> {
        let config: MachineConfig = json(body)?;
        Ok(Parsed { deprecated: config.cpu_template.is_some(), request: Self::PutMachineConfig(config) })
    }

    fn parse_patch_machine_config(body: &[u8]) -> Result<Parsed, Fault> {
        let patch: MachineConfigPatch = json(body)?;
        if patch.is_empty() {
            return Err(empty(&Method::PATCH));
        }
        Ok(Parsed { deprecated: patch.cpu_template.is_some(), request: Self::PatchMachineConfig(patch) })
    }

    fn parse_load_snapshot(body: &[u8]) -> Result<Parsed, Fault> {
        let load: SnapshotLoad = json(body)?;
        // One of two fields is required, which is a matter of the body's shape to the contract.
        load.backend().map_err(serde_json::Error::custom)?;
        Ok(Parsed { deprecated: load.is_deprecated(), request: Self::LoadSnapshot(Box::new(load)) })
    }

    fn parse_put_drive(id: &str, body: &[u8]) -> Result<Self, Fault> {
        let drive: Drive = json(body)?;
        if id != drive.drive_id {
            return Err(Invalid::IdMismatch.into());
        }
        Ok(Self::PutDrive(drive))
    }

    fn parse_patch_drive(id: &str, body: &[u8]) -> Result<Self, Fault> {
        let patch: DrivePatch = json(body)?;
        if id != patch.drive_id {
            return Err(Invalid::IdMismatch.into());
        }
        Ok(Self::PatchDrive(patch))
    }

    /// Writes a request: method, path, and body if it has one.
    pub fn render(&self) -> (Method, String, Option<Vec<u8>>) {
        match self {
            Self::GetInstanceInfo => get("/"),
            Self::GetVersion => get("/version"),
            Self::GetVmConfig => get("/vm/config"),
            Self::GetMachineConfig => get("/machine-config"),
            Self::GetPrometheus => get("/metrics/prometheus"),
            Self::PutBootSource(body) => send(Method::PUT, "/boot-source", body),
            Self::PutMachineConfig(body) => send(Method::PUT, "/machine-config", body),
            Self::PatchMachineConfig(body) => send(Method::PATCH, "/machine-config", body),
            Self::PutDrive(body) => send(Method::PUT, &format!("/drives/{}", body.drive_id), body),
            Self::PatchDrive(body) => send(Method::PATCH, &format!("/drives/{}", body.drive_id), body),
            Self::PutEntropy(body) => send(Method::PUT, "/entropy", body),
            Self::PutSerial(body) => send(Method::PUT, "/serial", body),
            Self::PutLogger(body) => send(Method::PUT, "/logger", body),
            Self::PutMetrics(body) => send(Method::PUT, "/metrics", body),
            Self::PutAction(action) => send(Method::PUT, "/actions", &ActionBody { action_type: *action }),
            Self::CreateSnapshot(body) => send(Method::PUT, "/snapshot/create", body),
            Self::PutSnapshotHandler(body) => send(Method::PUT, "/snapshot/handler", body),
            Self::LoadSnapshot(body) => send(Method::PUT, "/snapshot/load", body),
            Self::PatchVm(state) => send(Method::PATCH, "/vm", &VmBody { state: *state }),
        }
    }
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    Ok(serde_json::from_slice(body)?)
}

fn empty(method: &Method) -> Fault {
    Fault::bad_request(format!("Empty {method} request."))
}

fn get(path: &str) -> (Method, String, Option<Vec<u8>>) {
    (Method::GET, path.to_owned(), None)
}

fn send<T: Serialize>(method: Method, path: &str, body: &T) -> (Method, String, Option<Vec<u8>>) {
    let body = serde_json::to_vec(body).expect("the types of the contract have string keys only");
    (method, path.to_owned(), Some(body))
}

#[cfg(test)]
mod tests;
