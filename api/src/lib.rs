//! The contract: what can be asked of a machine over HTTP or from a shell, and what is answered.
//!
//! ```text
//!   cli ──▶ client ──▶ HTTP/1.1 on a UNIX socket ──▶ server ──▶ Request::parse ──▶ Service
//!                                                                                  │
//!                 bytes ◀── Reply or Fault ◀───────────────────────────────────────┘
//! ```
//!
//! The bodies, paths, error texts and status lines are those of Firecracker's v1 API, so that its clients work
//! unmodified; what is added goes into new paths and optional fields only.
//!
//! Invariants:
//!
//! - Nothing here knows a VMM or KVM: whoever implements [`Service`] does.
//! - [`Request::parse`] is pure and total: any bytes give a request or a [`Fault`], never a panic.
//! - [`Request::render`] is its inverse, so the client and the server cannot drift apart.
//! - `resources/openapi.json` is generated from the types; a test fails when it drifts.

pub mod cli;
pub mod client;
pub mod openapi;
mod reply;
mod request;
pub mod server;
mod service;
pub mod types;

pub use reply::{Fault, Reply};
pub use request::{Parsed, Request};
pub use service::Service;

/// The release of Firecracker whose contract is spoken: what `--version` says under that name, and what clients
/// compare with the oldest release they support.
pub const FIRECRACKER_VERSION: &str = "1.17.0";
