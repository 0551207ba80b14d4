//! Before the moment, and from it on.

use std::sync::Arc;

use super::desk::State;
use super::error::BeginError;
use super::session::Session;
use crate::fault::FaultEngine;

/// Memory that is protected as far as its guest does not write to it. It runs on: what it writes is opened again, and
/// noted. Dropping it ends that.
#[must_use = "dropping it ends the protection"]
pub struct Armed(Session);

impl Armed {
    /// Takes the moment: the memory as it is now is what [`Capture::save`] saves. Call it while the guest stands still,
    /// vCPUs and devices; when it returns, the guest may run. Do so soon after [`Capture::prepare`]: what is written in
    /// between is protected again here, the whole chunk of 2 MiB for any page of it, which takes 40 µs of base pages. So
    /// a guest that writes all over its memory gains little by having been prepared.
    ///
    /// # Errors
    ///
    /// [`BeginError`]; nothing is protected then.
    pub fn begin(self) -> Result<Capture, BeginError> {
        let Self(mut session) = self;
        session.desk.begin();
        // A verdict of before the moment may be about to be carried out.
        session.engine.settle().map_err(|_| BeginError::Hangs)?;
        let is_open = |chunk: &usize| session.desk.state(*chunk) != State::Armed;
        let open: Vec<_> = session.desk.chunks().filter(is_open).collect();
        session.arm_all(&open)?;
        Ok(Capture(session))
    }
}

/// Memory as it was at one moment, while its guest runs on. Whoever writes to a part that was not read yet waits, so
/// [save](Capture::save) it soon. Dropping it lets all go on.
#[must_use = "dropping it ends the capture"]
pub struct Capture(pub(super) Session);

impl Capture {
    /// Protects memory while the guest runs, so that [`Armed::begin`] has little left to do. It is protected 2 MiB at a
    /// time, and faults are served in between.
    ///
    /// # Errors
    ///
    /// [`BeginError`]; nothing is protected then.
    pub fn prepare(engine: Arc<FaultEngine>) -> Result<Armed, BeginError> {
        let mut session = Session::new(engine)?;
        for chunk in session.desk.chunks() {
            session.arm_all(&[chunk])?;
        }
        session.desk.make_buffers();
        Ok(Armed(session))
    }

    /// Protects all memory and takes the moment, while the guest stands still. It takes about 20 ms for each GiB of base
    /// pages on one processor, and next to nothing for huge ones: [`prepare`](Self::prepare) does most of that before.
    ///
    /// # Errors
    ///
    /// [`BeginError`]; nothing is protected then.
    pub fn begin(engine: Arc<FaultEngine>) -> Result<Self, BeginError> {
        let session = Session::new(engine)?;
        Armed(session).begin()
    }
}
