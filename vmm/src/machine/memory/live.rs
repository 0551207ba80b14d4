//! Memory that is to be saved while its guest runs.
//!
//! | memory | who protects it meanwhile | what the guest does not have yet |
//! |---|---|---|
//! | served by an engine | that engine | is read from another reader of its source |
//! | nobody serves it | an engine for the time being | is zero, or what its memfd has |
//! | another process serves it | nobody can | |
//! | its writes are followed | nobody can: the kernel notes them, and tells nobody | |

use std::sync::Arc;

use memory::capture::{self, Present, PresentError};
use memory::fault::FaultEngine;
use memory::source::PageReader;

use super::Memory;

/// Why memory cannot be saved while its guest runs.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The userfaultfd is another process's to read.
    #[error(
        "memory that another process serves cannot be saved while the guest runs: pause the microVM first"
    )]
    Handed,
    /// The kernel notes its writes, and tells nobody of them.
    #[error(
        "the memory of a microVM that tracks dirty pages cannot be saved while the guest runs: pause the microVM first"
    )]
    Tracked,
    /// It cannot have an engine.
    #[error(transparent)]
    Present(#[from] PresentError),
}

/// What a capture of memory is taken with. Dropping it gives back what was only there for that.
pub struct Capturable {
    engine: Arc<FaultEngine>,
    missing: Option<Box<dyn PageReader>>,
    present: Option<Present>,
}

impl Capturable {
    /// The engine that protects it.
    #[must_use]
    pub fn engine(&self) -> Arc<FaultEngine> {
        Arc::clone(&self.engine)
    }

    /// What the guest does not have yet.
    pub fn missing(&mut self) -> Option<&mut dyn PageReader> {
        match &mut self.missing {
            Some(missing) => Some(missing.as_mut()),
            None => None,
        }
    }

    /// Gives back an engine that was there for the capture alone; the capture is over.
    pub fn release(self) {
        let Self { engine, missing, present } = self;
        drop((engine, missing));
        if let Some(error) = present.and_then(|present| present.release().err()) {
            tracing::error!(?error, "guest memory stays with the engine that it was saved by");
        }
    }
}

impl Memory {
    /// What a capture of it is taken with. The guest may run.
    ///
    /// # Errors
    ///
    /// [`LiveError`].
    pub fn capturable(&self) -> Result<Capturable, LiveError> {
        if self.handed.is_some() {
            return Err(LiveError::Handed);
        }
        if self.changes.follows_writes() {
            return Err(LiveError::Tracked);
        }
        if let Some(engine) = &self.engine {
            let missing = self.again.as_ref().map(|again| again());
            return Ok(Capturable { engine: Arc::clone(engine), missing, present: None });
        }
        let present = capture::serve_present(self.ram.clone())?;
        let missing: Box<dyn PageReader> = Box::new(present.untouched());
        Ok(Capturable {
            engine: Arc::clone(present.engine()),
            missing: Some(missing),
            present: Some(present),
        })
    }
}
