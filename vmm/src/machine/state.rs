//! The states of a VM, and what each admits. No I/O: the driver asks here first, and acts then.
//!
//! ```text
//!   NotStarted ──start──▶ Running ──pause──▶ Paused      a load leads to either of the two
//!                            ▲  │               │  │
//!                            └──┼──resume───────┘  │
//!                               └──▶ Failed ◀──────┘   a page of memory cannot be had
//! ```
//!
//! There is no state for the end: with the VM ends the process. Clients of Firecracker know three states, so a VM that
//! has failed is `Paused` to them, and says why beside.

use std::sync::{Arc, Mutex, PoisonError};

use api::Request;
use api::types::{Action, InstanceState, VmState as RequestedState};

/// The state of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmState {
    /// Being configured.
    NotStarted,
    /// Its vCPUs are in the guest.
    Running,
    /// Its vCPUs and its virtio devices stand still. What is typed goes on to the serial port's FIFO.
    Paused,
    /// Its memory is not whole, so that it can never go on. It stands still, as far as it can be made to.
    Failed {
        /// Why.
        cause: Arc<str>,
    },
}

/// Why a request was not admitted, in the words that clients match on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It configures what can no longer be.
    #[error("The requested operation is not supported after starting the microVM.")]
    AfterStart,
    /// It concerns a VM that is not there yet.
    #[error("The requested operation is not supported before starting the microVM.")]
    BeforeStart,
    /// It saves a VM that runs.
    #[error(
        "Create snapshot error: save/restore unavailable while running: pause the microVM first, or ask for a live \
         snapshot with `\"live\": true`"
    )]
    Running,
    /// It concerns a VM that cannot go on.
    #[error("The microVM has failed and cannot go on, end it: {cause}")]
    Failed {
        /// Why.
        cause: Arc<str>,
    },
}

/// When a request makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    BeforeStart,
    AfterStart,
    /// After the start, as long as the guest can go on.
    Alive,
    /// The same, while it stands still.
    Still,
    Always,
}

fn when(request: &Request) -> When {
    match request {
        Request::GetInstanceInfo
        | Request::GetVersion
        | Request::GetVmConfig
        | Request::GetMachineConfig
        | Request::GetPrometheus => When::Always,
        Request::PutBootSource(_)
        | Request::PutMachineConfig(_)
        | Request::PatchMachineConfig(_)
        | Request::PutDrive(_)
        | Request::PutEntropy(_)
        | Request::PutSerial(_)
        | Request::PutLogger(_)
        | Request::PutMetrics(_)
        | Request::PutAction(Action::InstanceStart)
        | Request::LoadSnapshot(_) => When::BeforeStart,
        Request::CreateSnapshot(create) if !create.live => When::Still,
        Request::PatchVm(RequestedState::Paused) | Request::PutAction(Action::FlushMetrics) => {
            When::AfterStart
        }
        Request::PatchDrive(_)
        | Request::PutSnapshotHandler(_)
        | Request::CreateSnapshot(_)
        | Request::PatchVm(RequestedState::Resumed)
        | Request::PutAction(Action::SendCtrlAltDel) => When::Alive,
    }
}

impl VmState {
    /// Whether `request` may be carried out in this state.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] that the client is told.
    pub fn admit(&self, request: &Request) -> Result<(), Refusal> {
        match (when(request), self) {
            (When::BeforeStart, Self::Running | Self::Paused | Self::Failed { .. }) => {
                Err(Refusal::AfterStart)
            }
            (When::AfterStart | When::Alive | When::Still, Self::NotStarted) => Err(Refusal::BeforeStart),
            (When::Alive | When::Still, Self::Failed { cause }) => {
                Err(Refusal::Failed { cause: Arc::clone(cause) })
            }
            (When::Still, Self::Running) => Err(Refusal::Running),
            _ => Ok(()),
        }
    }

    /// The state after `request` was carried out in this one. To pause what is paused changes nothing.
    #[must_use]
    pub fn after(&self, request: &Request) -> Self {
        match (self, request) {
            (Self::NotStarted, Request::PutAction(Action::InstanceStart)) => Self::Running,
            (Self::NotStarted, Request::LoadSnapshot(load)) if load.resume_vm => Self::Running,
            (Self::NotStarted, Request::LoadSnapshot(_)) => Self::Paused,
            (Self::Running | Self::Paused, Request::PatchVm(RequestedState::Paused)) => Self::Paused,
            (Self::Running | Self::Paused, Request::PatchVm(RequestedState::Resumed)) => Self::Running,
            (state, _) => state.clone(),
        }
    }

    /// The state after its memory has failed. What follows from a failure is none of its own.
    #[must_use]
    pub fn failed(&self, cause: &str) -> Self {
        match self {
            Self::Running | Self::Paused => Self::Failed { cause: cause.into() },
            Self::NotStarted | Self::Failed { .. } => self.clone(),
        }
    }

    /// Why it cannot go on.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        match self {
            Self::Failed { cause } => Some(cause),
            Self::NotStarted | Self::Running | Self::Paused => None,
        }
    }
}

/// The state as the driver publishes it, for those who only want to know. Clones are the same.
#[derive(Debug, Clone)]
pub struct Publication(Arc<Published>);

#[derive(Debug)]
struct Published {
    instance_id: String,
    state: Mutex<VmState>,
    /// What has become of the process that served the guest's memory, where it has gone.
    handler_failure: Mutex<Option<String>>,
}

impl Publication {
    pub(super) fn new(instance_id: &str, state: VmState) -> Self {
        let (state, handler_failure) = (Mutex::new(state), Mutex::default());
        Self(Arc::new(Published { instance_id: instance_id.to_owned(), state, handler_failure }))
    }

    /// The instance's name.
    #[must_use]
    pub fn instance_id(&self) -> &str {
        &self.0.instance_id
    }

    /// The state as it was last published.
    #[must_use]
    pub fn state(&self) -> VmState {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What has become of the process that served the guest's memory, where it has gone.
    #[must_use]
    pub fn handler_failure(&self) -> Option<String> {
        self.0.handler_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For the driver alone.
    pub(super) fn publish_handler(&self, failure: Option<String>) {
        *self.0.handler_failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    /// For the driver alone.
    pub(super) fn publish(&self, state: &VmState) {
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner) = state.clone();
    }
}

impl From<&VmState> for InstanceState {
    fn from(state: &VmState) -> Self {
        match state {
            VmState::NotStarted => Self::NotStarted,
            VmState::Running => Self::Running,
            VmState::Paused | VmState::Failed { .. } => Self::Paused,
        }
    }
}

#[cfg(test)]
mod tests {
    use api::types::{BootSource, Drive, DrivePatch, MachineConfig, SnapshotCreate, SnapshotLoad};

    use super::*;

    fn failed() -> VmState {
        VmState::Running.failed("a page is lost")
    }

    fn drive() -> Drive {
        serde_json::from_str(r#"{"drive_id":"d","is_root_device":false,"path_on_host":"/d"}"#).unwrap()
    }

    #[test]
    fn configuring_is_for_before_the_start_and_changing_for_after() {
        let before = [
            Request::PutBootSource(BootSource::default()),
            Request::PutMachineConfig(MachineConfig::default()),
            Request::PutDrive(drive()),
            Request::PutAction(Action::InstanceStart),
        ];
        let after = [
            Request::PatchDrive(DrivePatch::default()),
            Request::PatchVm(RequestedState::Paused),
            Request::PutAction(Action::FlushMetrics),
            Request::PutAction(Action::SendCtrlAltDel),
        ];
        for request in before {
            assert_eq!(VmState::NotStarted.admit(&request), Ok(()));
            assert_eq!(VmState::Running.admit(&request), Err(Refusal::AfterStart));
            assert_eq!(VmState::Paused.admit(&request), Err(Refusal::AfterStart));
        }
        for request in after {
            assert_eq!(VmState::NotStarted.admit(&request), Err(Refusal::BeforeStart));
            assert_eq!(VmState::Running.admit(&request), Ok(()));
            assert_eq!(VmState::Paused.admit(&request), Ok(()));
        }
        for state in [VmState::NotStarted, VmState::Running, VmState::Paused, failed()] {
            assert_eq!(state.admit(&Request::GetVmConfig), Ok(()));
        }
    }

    #[test]
    fn a_start_runs_and_pause_and_resume_can_be_repeated() {
        let (start, pause, resume) = (
            Request::PutAction(Action::InstanceStart),
            Request::PatchVm(RequestedState::Paused),
            Request::PatchVm(RequestedState::Resumed),
        );
        let mut state = VmState::NotStarted;
        for (request, expected) in [
            (&start, VmState::Running),
            (&pause, VmState::Paused),
            (&pause, VmState::Paused),
            (&resume, VmState::Running),
            (&resume, VmState::Running),
        ] {
            assert_eq!(state.admit(request), Ok(()));
            state = state.after(request);
            assert_eq!(state, expected);
        }
    }

    #[test]
    fn what_stands_still_is_saved_and_live_what_runs_too() {
        let create = |live| Request::CreateSnapshot(SnapshotCreate { live, ..SnapshotCreate::default() });
        for (state, offline, live) in [
            (VmState::NotStarted, Err(Refusal::BeforeStart), Err(Refusal::BeforeStart)),
            (VmState::Running, Err(Refusal::Running), Ok(())),
            (VmState::Paused, Ok(()), Ok(())),
        ] {
            assert_eq!(state.admit(&create(false)), offline);
            assert_eq!(state.admit(&create(true)), live);
            assert_eq!(state.after(&create(true)), state);
        }
        assert!(matches!(failed().admit(&create(true)), Err(Refusal::Failed { .. })));
        let text = Refusal::Running.to_string();
        assert!(text.contains("save/restore unavailable while running"), "clients match on it: {text}");
    }

    #[test]
    fn what_is_loaded_stands_still_or_runs() {
        let load = |resume_vm| {
            Request::LoadSnapshot(Box::new(SnapshotLoad { resume_vm, ..SnapshotLoad::default() }))
        };
        assert_eq!(VmState::NotStarted.admit(&load(true)), Ok(()));
        assert_eq!(VmState::NotStarted.after(&load(true)), VmState::Running);
        assert_eq!(VmState::NotStarted.after(&load(false)), VmState::Paused);
        for state in [VmState::Running, VmState::Paused, failed()] {
            assert_eq!(state.admit(&load(true)), Err(Refusal::AfterStart));
        }
    }

    #[test]
    fn what_has_failed_stays_so_and_says_why() {
        let (pause, resume) =
            (Request::PatchVm(RequestedState::Paused), Request::PatchVm(RequestedState::Resumed));
        let state = failed();
        assert_eq!(state.admit(&pause), Ok(()));
        assert_eq!(state.admit(&Request::PutAction(Action::FlushMetrics)), Ok(()));
        for request in [resume.clone(), Request::PutAction(Action::SendCtrlAltDel)] {
            let refusal = state.admit(&request).unwrap_err();
            assert!(refusal.to_string().ends_with("a page is lost"), "{refusal}");
        }
        assert_eq!(state.admit(&Request::PutAction(Action::InstanceStart)), Err(Refusal::AfterStart));
        for request in [pause, resume] {
            assert_eq!(state.after(&request), state);
        }
        assert_eq!(state.failed("another").failure(), Some("a page is lost"), "the first is the cause");
        assert_eq!(VmState::Paused.failed("it"), VmState::Running.failed("it"));
        assert_eq!(VmState::NotStarted.failed("it"), VmState::NotStarted);
        assert_eq!(InstanceState::from(&state), InstanceState::Paused);
    }
}
