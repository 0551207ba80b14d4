//! The contract as an OpenAPI document, generated from the types and one table of operations.
//!
//! `resources/openapi.json` is its output. `UPDATE_OPENAPI=1 cargo test -p api openapi` writes it anew.

use crate::FIRECRACKER_VERSION;
use crate::types::{
    ActionBody, BootSource, Drive, DrivePatch, Entropy, FaultBody, InstanceInfo, Logger, MachineConfig,
    MachineConfigPatch, Metrics, Serial, SnapshotCreate, SnapshotHandler, SnapshotLoad, Version, VmBody,
    VmConfig,
};
use std::borrow::Cow;
use utoipa::ToSchema;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathsBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::{
    ComponentsBuilder, Content, ContentBuilder, InfoBuilder, License, ObjectBuilder, OpenApi, OpenApiBuilder,
    PathItem, Ref, RefOr, Required, Response, ResponseBuilder, Schema, Type,
};

/// One operation: everything the document says about it.
struct Operation {
    method: HttpMethod,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    body: Option<Shape>,
    answer: Answer,
}

/// Types by name, as the document's components hold them.
type Schemas = Vec<(String, RefOr<Schema>)>;

/// A type of the contract, as the document needs it.
#[derive(Clone, Copy)]
struct Shape {
    name: fn() -> Cow<'static, str>,
    register: fn(&mut Schemas),
}

enum Answer {
    Nothing,
    Json(Shape),
    Text(&'static str),
}

const fn shape<T: ToSchema>() -> Shape {
    Shape { name: T::name, register: register::<T> }
}

/// Adds a type and those it refers to.
fn register<T: ToSchema>(schemas: &mut Schemas) {
    schemas.push((T::name().into_owned(), T::schema()));
    T::schemas(schemas);
}

const fn get(path: &'static str, id: &'static str, summary: &'static str, answer: Answer) -> Operation {
    Operation { method: HttpMethod::Get, path, id, summary, body: None, answer }
}

const fn put(path: &'static str, id: &'static str, summary: &'static str, body: Shape) -> Operation {
    Operation { method: HttpMethod::Put, path, id, summary, body: Some(body), answer: Answer::Nothing }
}

const fn patch(path: &'static str, id: &'static str, summary: &'static str, body: Shape) -> Operation {
    Operation { method: HttpMethod::Patch, ..put(path, id, summary, body) }
}

/// All operations. Their names and those of the types are those of Firecracker's document, so that generated clients have the same methods.
const OPERATIONS: &[Operation] = &[
    get(
        "/",
        "describeInstance",
        "Who this is and what state it is in.",
        Answer::Json(shape::<InstanceInfo>()),
    ),
    get(
        "/version",
        "getFirecrackerVersion",
        "The release of the contract.",
        Answer::Json(shape::<Version>()),
    ),
    get("/vm/config", "getExportVmConfig", "The whole configuration.", Answer::Json(shape::<VmConfig>())),
    patch("/vm", "patchVm", "Pause or resume a started machine.", shape::<VmBody>()),
    put("/actions", "createSyncAction", "Start the machine, or do something to it.", shape::<ActionBody>()),
    put(
        "/boot-source",
        "putGuestBootSource",
        "Set kernel, initrd and command line; before boot.",
        shape::<BootSource>(),
    ),
    get(
        "/machine-config",
        "getMachineConfiguration",
        "vCPUs and memory; defaults if never set.",
        Answer::Json(shape::<MachineConfig>()),
    ),
    put(
        "/machine-config",
        "putMachineConfiguration",
        "Set vCPUs and memory; before boot.",
        shape::<MachineConfig>(),
    ),
    patch(
        "/machine-config",
        "patchMachineConfiguration",
        "Change some of vCPUs and memory; before boot.",
        shape::<MachineConfigPatch>(),
    ),
    put("/drives/{drive_id}", "putGuestDriveByID", "Add or replace a drive; before boot.", shape::<Drive>()),
    patch(
        "/drives/{drive_id}",
        "patchGuestDriveByID",
        "Change a drive's file or limits; after boot.",
        shape::<DrivePatch>(),
    ),
    put("/entropy", "putEntropyDevice", "Add the entropy device; before boot.", shape::<Entropy>()),
    put("/serial", "putSerialDevice", "Say where the guest's console goes; before boot.", shape::<Serial>()),
    put("/logger", "putLogger", "Say where the log goes and what it holds; before boot.", shape::<Logger>()),
    put(
        "/metrics",
        "putMetrics",
        "Say where the metrics are written; once, before boot.",
        shape::<Metrics>(),
    ),
    put(
        "/snapshot/create",
        "createSnapshot",
        "Save the machine to files; paused, or live while it goes on.",
        shape::<SnapshotCreate>(),
    ),
    put(
        "/snapshot/load",
        "loadSnapshot",
        "Go on from the files of a machine; before anything else is configured.",
        shape::<SnapshotLoad>(),
    ),
    put(
        "/snapshot/handler",
        "putSnapshotHandler",
        "Have another process serve the memory, in place of one that has gone. An addition to the contract.",
        shape::<SnapshotHandler>(),
    ),
    get(
        "/metrics/prometheus",
        "getPrometheusMetrics",
        "All metrics, for scraping. An addition to the contract.",
        Answer::Text("application/openmetrics-text"),
    ),
];

/// The document.
pub fn document() -> OpenApi {
    let fault = shape::<FaultBody>();
    let mut schemas = Schemas::new();
    (fault.register)(&mut schemas);
    let mut paths = PathsBuilder::new();
    for operation in OPERATIONS {
        for shape in operation.shapes() {
            (shape.register)(&mut schemas);
        }
        paths =
            paths.path(operation.path, PathItem::new(operation.method.clone(), operation.describe(fault)));
    }
    let info = InfoBuilder::new()
        .title("Faultless")
        .description(Some(
            "Launches and controls one microVM, over HTTP/1.1 on a UNIX socket. \
             Compatible with the API of Firecracker at this version.",
        ))
        .version(FIRECRACKER_VERSION)
        .license(Some(License::new("Apache-2.0")))
        .build();
    let components = ComponentsBuilder::new().schemas_from_iter(schemas).build();
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components)).build()
}

impl Operation {
    fn shapes(&self) -> impl Iterator<Item = Shape> {
        let answer = match self.answer {
            Answer::Json(shape) => Some(shape),
            Answer::Nothing | Answer::Text(_) => None,
        };
        self.body.into_iter().chain(answer)
    }

    fn describe(&self, fault: Shape) -> OperationBuilder {
        let mut operation = OperationBuilder::new()
            .operation_id(Some(self.id))
            .summary(Some(self.summary))
            .response("400", json_response("Refused; nothing was changed.", fault));
        if self.path.contains("{drive_id}") {
            let id = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[A-Za-z0-9_]+$"));
            let parameter = ParameterBuilder::new()
                .name("drive_id")
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .description(Some("The drive's id, as in the body."))
                .schema(Some(id));
            operation = operation.parameter(parameter);
        }
        if let Some(body) = self.body {
            let body = RequestBodyBuilder::new()
                .content("application/json", reference(body))
                .required(Some(Required::True));
            operation = operation.request_body(Some(body.build()));
        }
        match self.answer {
            Answer::Nothing => operation.response("204", Response::new("Done.")),
            Answer::Json(shape) => operation.response("200", json_response("The answer.", shape)),
            Answer::Text(content_type) => {
                let text = ContentBuilder::new().schema(Some(ObjectBuilder::new().schema_type(Type::String)));
                let response =
                    ResponseBuilder::new().description("The answer.").content(content_type, text.build());
                operation.response("200", response)
            }
        }
    }
}

fn reference(shape: Shape) -> Content {
    Content::new(Some(Ref::from_schema_name((shape.name)())))
}

fn json_response(description: &str, shape: Shape) -> Response {
    ResponseBuilder::new().description(description).content("application/json", reference(shape)).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;
    use hyper::Method;
    use serde_json::Value;
    use std::collections::BTreeSet;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/openapi.json");

    fn generated() -> String {
        document().to_pretty_json().unwrap() + "\n"
    }

    #[test]
    fn the_file_is_what_is_generated() {
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(FILE, generated()).unwrap();
        }
        let file = std::fs::read_to_string(FILE).unwrap_or_default();
        assert!(
            file == generated(),
            "resources/openapi.json is out of date: run `UPDATE_OPENAPI=1 cargo test -p api openapi` and commit it"
        );
    }

    #[test]
    fn every_operation_is_parsed_and_every_reference_leads_somewhere() {
        let document: Value = serde_json::from_str(&generated()).unwrap();
        for operation in OPERATIONS {
            let (method, body) = match operation.method {
                HttpMethod::Get => (Method::GET, ""),
                HttpMethod::Put => (Method::PUT, "{"),
                _ => (Method::PATCH, "{"),
            };
            let path = operation.path.replace("{drive_id}", "a");
            match Request::parse(&method, &path, body.as_bytes()) {
                Ok(parsed) => assert_eq!(parsed.request.render().1, path),
                Err(fault) => assert!(fault.message.contains("deserializing"), "{path}: {fault}"),
            }
        }
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for name in references(&document) {
            assert!(schemas.contains_key(&name), "{name} is not described");
        }
    }

    /// The names of all schemas that are referred to.
    fn references(value: &Value) -> BTreeSet<String> {
        match value {
            Value::Object(fields) => fields
                .iter()
                .flat_map(|(key, value)| match (key.as_str(), value) {
                    ("$ref", Value::String(target)) => {
                        BTreeSet::from([target.trim_start_matches("#/components/schemas/").to_owned()])
                    }
                    _ => references(value),
                })
                .collect(),
            Value::Array(items) => items.iter().flat_map(references).collect(),
            _ => BTreeSet::new(),
        }
    }

    #[test]
    fn bodies_refuse_unknown_fields_as_the_parser_does() {
        let document: Value = serde_json::from_str(&generated()).unwrap();
        for name in [
            "BootSource",
            "MachineConfiguration",
            "Drive",
            "PartialDrive",
            "Logger",
            "SerialDevice",
            "EntropyDevice",
            "SnapshotCreateParams",
            "SnapshotLoadParams",
            "MemoryBackend",
        ] {
            let schema = &document["components"]["schemas"][name];
            assert_eq!(schema["additionalProperties"], Value::Bool(false), "{name}: {schema}");
        }
    }
}
