//! The loop that owns a machine: it takes one message at a time, asks the state whether it is admitted, acts, and
//! answers. Nobody else writes the state.
//!
//! | room | what it is for |
//! |---|---|
//! | `ending` | how a machine comes to its end |
//! | `failure` | what is done when a guest cannot go on |
//! | `saving` | saving to files |
//! | `snapshots` | going on from files |

mod ending;
mod failure;
mod saving;
mod snapshots;

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use api::types::{Action, Invalid, VmConfig, VmState as RequestedState};
use api::{Fault, Reply, Request};

use super::build::{self, BuildError};
use super::devices::{DeviceError, Options};
use super::memory::MemoryPlan;
use super::memory::handler::HandOverError;
use super::message::{Message, Notifier};
use super::resources::{ConfigureError, Resources};
use super::state::{Publication, Refusal, VmState};
use super::vm::{Vm, VmError};
use crate::error::chain;
use crate::snapshot::lineage::Lineage;
use crate::snapshot::save::SaveError;
use crate::telemetry::log::{Log, LogError};
use crate::telemetry::metrics::{MetricsError, MetricsRegistry};
use crate::terminal::RawTerminal;
pub use ending::Ending;
pub use snapshots::RestoreError;

/// How often metrics are written where nobody asks, as Firecracker's are.
const METRICS_PERIOD: Duration = Duration::from_secs(60);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It is not for this state.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It configures what cannot be.
    #[error(transparent)]
    Configure(#[from] ConfigureError),
    /// The VM could not be started.
    #[error("Start microvm error: {0}")]
    Build(#[from] BuildError),
    /// The VM did not do as it was told.
    #[error("Internal VMM error: {0}")]
    Vm(#[from] VmError),
    /// A device did not.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It saves or loads what cannot be.
    #[error("{0}")]
    Snapshot(Invalid),
    /// The VM was not saved.
    #[error("Create snapshot error: {0}")]
    Save(#[from] SaveError),
    /// A snapshot for a machine that is configured already.
    #[error("Loading a microVM snapshot not allowed after configuring boot-specific resources.")]
    Configured,
    /// A page-fault handler for memory that has none.
    #[error(
        "The microVM's memory is not served by another process: load a snapshot with the backend type Uffd for that."
    )]
    NoHandler,
    /// Another page-fault handler cannot be had.
    #[error("Handler error: {0}")]
    Handler(#[from] HandOverError),
    /// The VM cannot go on from its files.
    #[error("Load snapshot error: {0}")]
    Restore(#[from] RestoreError),
    /// The log.
    #[error("Logger error: {0}")]
    Log(#[from] LogError),
    /// The metrics.
    #[error("Metrics error: {0}")]
    Metrics(#[from] MetricsError),
}

/// The owner of a machine.
pub struct Driver {
    instance_id: String,
    inbox: Receiver<Message>,
    notifier: Notifier,
    options: Options,
    log: Log,
    metrics: MetricsRegistry,
    resources: Resources,
    memory: MemoryPlan,
    /// What a diff of the VM would be over: the snapshot that it was saved to, or loaded from, last.
    lineage: Option<Lineage>,
    /// The snapshot that is being written.
    saving: Option<saving::Saving>,
    /// Whether a restore has failed, after which there is nothing more to do.
    is_spent: bool,
    /// Whether a VM that has failed stays, for those who ask what has become of it.
    keeps_failed: bool,
    state: VmState,
    publication: Publication,
    vm: Option<Vm>,
    terminal: Option<RawTerminal>,
}

impl Driver {
    /// A driver of nothing yet, which is told by `inbox`, the end of `notifier`.
    #[must_use]
    pub fn new(
        instance_id: &str,
        inbox: Receiver<Message>,
        notifier: Notifier,
        options: Options,
        log: Log,
    ) -> Self {
        let mut metrics = MetricsRegistry::new();
        let lines_lost = log.lines_lost();
        let logger = [("missed_log_count", "lines of the log that nobody took", &lines_lost)];
        metrics.register("logger", "logger", &[], logger.into_iter());
        Self {
            instance_id: instance_id.to_owned(),
            inbox,
            notifier,
            options,
            log,
            metrics,
            resources: Resources::default(),
            memory: MemoryPlan::Fresh,
            lineage: None,
            saving: None,
            is_spent: false,
            keeps_failed: false,
            state: VmState::NotStarted,
            publication: Publication::new(instance_id, VmState::NotStarted),
            vm: None,
            terminal: None,
        }
    }

    /// The VM's memory comes about as `plan` says.
    #[must_use]
    pub fn with_memory(mut self, plan: MemoryPlan) -> Self {
        self.memory = plan;
        self
    }

    /// A VM that has failed stays until somebody ends it; without this the machine ends with it.
    #[must_use]
    pub fn keeping_failed(mut self, keeps: bool) -> Self {
        self.keeps_failed = keeps;
        self
    }

    /// Where the state can be read.
    #[must_use]
    pub fn publication(&self) -> Publication {
        self.publication.clone()
    }

    /// Configures all that `config` names and starts the VM, as one request after the other would.
    ///
    /// # Errors
    ///
    /// [`RequestError`] of the first that fails.
    pub fn start_with(&mut self, config: VmConfig) -> Result<(), RequestError> {
        let drives = config.drives.into_iter().map(Request::PutDrive);
        let requests = [
            config.logger.map(Request::PutLogger),
            config.metrics.map(Request::PutMetrics),
            config.machine_config.map(Request::PutMachineConfig),
            config.boot_source.map(Request::PutBootSource),
            config.entropy.map(Request::PutEntropy),
            config.serial.map(Request::PutSerial),
        ];
        let start = Request::PutAction(Action::InstanceStart);
        for request in requests.into_iter().flatten().chain(drives).chain([start]) {
            self.configure_with(request)?;
        }
        Ok(())
    }

    /// Carries out a request that no client sent: one that a flag stands for.
    ///
    /// # Errors
    ///
    /// [`RequestError`].
    pub fn configure_with(&mut self, request: Request) -> Result<(), RequestError> {
        self.carry_out(request).map(drop)
    }

    /// Takes messages until the machine ends, and ends all that belongs to it.
    pub fn run(mut self) -> Ending {
        let ending = self.take_messages();
        match ending.failure() {
            Some(cause) => tracing::error!(cause, "the microVM failed"),
            None => tracing::info!("the microVM has ended"),
        }
        self.cancel_saving();
        let stopped = self.vm.as_mut().map_or(Ok(()), Vm::stop);
        self.flush_metrics();
        match stopped {
            Ok(()) => {
                if let Some(vm) = self.vm.take() {
                    ending::give_up(vm);
                }
                ending
            }
            Err(error) => {
                // Dropping it would wait without end for the part that is stuck; the process ends without it.
                std::mem::forget(self.vm.take());
                match ending {
                    Ending::MemoryFailed(_) => ending,
                    _ => Ending::Failed(chain(&error)),
                }
            }
        }
    }

    fn take_messages(&mut self) -> Ending {
        let mut flush_at = Instant::now() + METRICS_PERIOD;
        loop {
            match self.inbox.recv_timeout(flush_at.saturating_duration_since(Instant::now())) {
                Ok(Message::Request(request, answer)) => {
                    let request = match *request {
                        Request::CreateSnapshot(create) => {
                            self.save(create, answer);
                            continue;
                        }
                        other => other,
                    };
                    let reply = self.carry_out(request).map_err(|error| Fault::bad_request(chain(&error)));
                    let failure = reply.as_ref().err().map(|fault| fault.message.clone());
                    // A client that has gone does not read its answer.
                    let _ = answer.send(reply);
                    if self.is_spent {
                        return Ending::Failed(failure.unwrap_or_default());
                    }
                }
                Ok(Message::Saved(saved)) => self.note_saved(*saved),
                Ok(Message::Guest(event)) => {
                    if let Some(ending) = self.heed(event) {
                        return ending;
                    }
                }
                Ok(Message::Quit) | Err(RecvTimeoutError::Disconnected) => {
                    let failure = self.state.failure().map(str::to_owned);
                    return failure.map_or(Ending::ByUser, Ending::MemoryFailed);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.flush_metrics();
                    flush_at = Instant::now() + METRICS_PERIOD;
                }
            }
        }
    }

    fn flush_metrics(&mut self) {
        if self.metrics.is_configured()
            && let Err(error) = self.metrics.flush()
        {
            tracing::error!(%error, "metrics were not written");
        }
    }

    /// Carries out a request that the state admits, and moves the state on when it succeeds.
    fn carry_out(&mut self, request: Request) -> Result<Reply, RequestError> {
        self.state.admit(&request)?;
        let next = self.state.after(&request);
        let reply = match request {
            Request::GetVmConfig => Reply::VmConfig(Box::new(self.resources.to_config())),
            Request::GetMachineConfig => Reply::MachineConfig(self.resources.machine.clone()),
            Request::GetPrometheus => Reply::Prometheus(self.metrics.prometheus()),
            Request::PutAction(action) => self.act(action)?,
            Request::PatchVm(state) => self.set_running(state == RequestedState::Resumed)?,
            Request::PutSnapshotHandler(handler) => self.replace_handler(&handler)?,
            Request::LoadSnapshot(load) => self.load_snapshot(&load)?,
            Request::PatchDrive(patch) => {
                patch.validate().map_err(ConfigureError::InvalidDrive)?;
                self.vm_mut().devices.patch_drive(&patch)?;
                self.resources.note_drive_patch(&patch);
                Reply::Empty
            }
            other => self.configure(other)?,
        };
        self.state = next;
        self.publication.publish(&self.state);
        Ok(reply)
    }

    fn configure(&mut self, request: Request) -> Result<Reply, RequestError> {
        match request {
            Request::PutBootSource(source) => self.resources.set_boot_source(source)?,
            Request::PutMachineConfig(machine) => self.resources.set_machine(machine)?,
            Request::PatchMachineConfig(patch) => self.resources.patch_machine(&patch)?,
            Request::PutDrive(drive) => self.resources.set_drive(drive)?,
            Request::PutEntropy(entropy) => self.resources.entropy = Some(entropy),
            Request::PutSerial(serial) => self.resources.serial = Some(serial),
            Request::PutLogger(logger) => {
                self.log.configure(&logger)?;
                self.resources.logger = Some(logger);
            }
            Request::PutMetrics(metrics) => {
                self.metrics.configure(&metrics, &self.instance_id)?;
                self.resources.metrics = Some(metrics);
            }
            other => unreachable!("{other:?} configures nothing and is answered elsewhere"),
        }
        Ok(Reply::Empty)
    }

    fn act(&mut self, action: Action) -> Result<Reply, RequestError> {
        match action {
            Action::InstanceStart => {
                let mut vm =
                    build::build(&mut self.resources, &mut self.memory, &self.options, &self.notifier)?;
                vm.resume()?;
                vm.register_metrics(&mut self.metrics);
                self.vm = Some(vm);
                self.take_terminal();
                tracing::info!("the microVM runs");
            }
            // As with Firecracker, flushing what goes nowhere is no error.
            Action::FlushMetrics if !self.metrics.is_configured() => {}
            Action::FlushMetrics => self.metrics.flush()?,
            Action::SendCtrlAltDel => self.vm_mut().devices.send_ctrl_alt_del()?,
        }
        Ok(Reply::Empty)
    }

    /// From now on what is typed is for the guest.
    fn take_terminal(&mut self) {
        self.terminal = RawTerminal::stdin().unwrap_or_else(|error| {
            tracing::warn!(%error, "the terminal cannot be made raw: keys reach the guest line by line");
            None
        });
    }

    fn set_running(&mut self, running: bool) -> Result<Reply, RequestError> {
        match (&self.state, running) {
            (VmState::Running, false) => self.vm_mut().pause()?,
            (VmState::Paused, true) => {
                self.refuse_while_still()?;
                self.vm_mut().resume()?;
            }
            // As asked for already, or never admitted.
            _ => {}
        }
        Ok(Reply::Empty)
    }

    fn vm_mut(&mut self) -> &mut Vm {
        self.vm.as_mut().expect("a state after the start has a VM")
    }
}
