//! Where the serial port leads.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};

use super::DeviceError;
use crate::{process, telemetry, terminal};

/// Where the serial port leads where `/serial` does not say otherwise.
#[derive(Debug)]
pub struct Console {
    /// What is typed; standard input where there is none.
    input: Option<OwnedFd>,
}

impl Console {
    /// Standard input and output.
    #[must_use]
    pub fn standard() -> Self {
        Self { input: None }
    }

    /// Standard output, and what `input` gives.
    #[must_use]
    pub fn with_input(input: OwnedFd) -> Self {
        Self { input: Some(input) }
    }

    /// `None` in the background of a terminal, where reading would stop the whole process.
    pub(super) fn input(&self) -> io::Result<Option<OwnedFd>> {
        match &self.input {
            Some(input) => input.try_clone().map(Some),
            None if io::stdin().is_terminal() && !terminal::is_ours() => Ok(None),
            None => io::stdin().as_fd().try_clone_to_owned().map(Some),
        }
    }
}

/// What the process that a VM runs in gives its devices.
#[derive(Debug)]
pub struct Options {
    /// Where the serial port leads.
    pub console: Console,
    /// Whether there is a boot timer.
    pub boot_timer: bool,
}

/// Where the guest's output goes.
pub(super) fn serial_output(
    config: Option<&api::types::Serial>,
) -> Result<Box<dyn Write + Send>, DeviceError> {
    match config.and_then(|config| config.serial_out_path.as_ref()) {
        Some(path) => {
            let file = telemetry::open_output(path)
                .map_err(|source| DeviceError::SerialOutput { path: path.clone(), source })?;
            Ok(Box::new(file))
        }
        None => process::standard_output()
            .map_err(|source| DeviceError::Host { step: "use standard output", source }),
    }
}
