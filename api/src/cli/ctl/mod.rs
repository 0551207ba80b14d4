//! `faultless ctl`: every operation of the API, from a shell.
//!
//! Tables for people, JSON for programs. A refused request ends with an error either way; with `--json` the body of
//! the refusal is printed, too.

mod arguments;
mod request;
mod snapshot;

pub use arguments::{ApiOperation, CtlArgs, Operation};
pub use snapshot::SnapshotCommand;

use super::table;
use crate::client::{Client, ClientError, Response};
use serde_json::Value;
use std::io::{self, Write};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// There was no answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The request was refused.
    #[error("refused with status {status}: {message}")]
    Fault {
        /// The HTTP status.
        status: u16,
        /// Why.
        message: String,
    },
    /// The output could not be written.
    #[error("cannot print the answer: {0}")]
    Output(#[from] io::Error),
}

/// Does what the arguments ask, and prints the answer to `out`.
pub fn execute(args: &CtlArgs, out: &mut dyn Write) -> Result<(), CtlError> {
    let client = Client::new(&args.api_sock).with_timeout(args.timeout());
    let response = match &args.operation {
        Operation::Api(operation) => client.call(&operation.request())?,
        Operation::Raw { method, path, body } => {
            client.raw(method, path, body.as_deref().map(str::as_bytes))?
        }
    };
    if response.is_success() || args.json {
        print(&response, args.json, out)?;
    }
    if response.is_success() {
        return Ok(());
    }
    Err(CtlError::Fault { status: response.status, message: response.fault_message() })
}

/// Prints JSON as it came, or as a table; text as it is; and nothing for nothing.
fn print(response: &Response, as_json: bool, out: &mut dyn Write) -> io::Result<()> {
    match response.json::<Value>() {
        Ok(value) if as_json => writeln!(out, "{value:#}"),
        Ok(value) => out.write_all(table::render(&value).as_bytes()),
        Err(_) => out.write_all(&response.body),
    }
}

#[cfg(test)]
mod tests;
