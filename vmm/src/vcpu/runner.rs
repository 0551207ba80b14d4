//! The thread of a vCPU: it enters the guest, gives it what it wants when it leaves, and does as the driver says.

use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use kvm_ioctls::VcpuExit;
use memory::GuestRam;

use super::kick::Kickable;
use super::{Acknowledged, Answer, Buses, Command, Order, VcpuMetrics, exits, lost};
use crate::machine::message::{GuestEvent, Notifier};
use crate::signals;

/// The thread's end of a vCPU.
pub(super) struct Runner {
    pub(super) index: u8,
    pub(super) fd: Kickable,
    pub(super) buses: Buses,
    pub(super) ram: GuestRam,
    pub(super) metrics: VcpuMetrics,
    pub(super) notifier: Notifier,
    pub(super) inbox: Receiver<Command>,
    pub(super) outbox: Sender<Acknowledged>,
    pub(super) stance: Stance,
}

/// Where the guest stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stance {
    Running,
    /// It has finished its last access, or has made none yet.
    Paused,
    /// It has said that it is at its end, in an access that is not finished.
    Ended,
}

/// What the thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Enter,
    Wait,
    End,
}

impl Runner {
    pub(super) fn run(mut self) {
        let mut next = Next::Wait;
        loop {
            next = match next {
                Next::Enter => self.enter(),
                Next::Wait => self.wait(),
                Next::End => return,
            }
        }
    }

    /// Waits outside of the guest for a command. Who comes here from the guest without a pause does so at its end.
    fn wait(&mut self) -> Next {
        if self.stance == Stance::Running {
            self.stance = Stance::Ended;
        }
        self.inbox.recv().map_or(Next::End, |command| self.obey(command))
    }

    /// Acknowledges `command` and says what it leads to.
    fn obey(&mut self, command: Command) -> Next {
        let answer = match &command.order {
            Order::Save(extent) if self.stance == Stance::Paused => {
                Answer::Saved(Box::new(self.fd.save(extent)))
            }
            Order::Save(_) => Answer::NotPaused,
            Order::Pause | Order::Resume | Order::Stop => Answer::Done,
        };
        // One that has ended is not made whole by a pause.
        self.stance = match &command.order {
            Order::Pause if self.stance == Stance::Running => Stance::Paused,
            Order::Resume => Stance::Running,
            _ => self.stance,
        };
        // The driver may have given up on the answer; then it is about to drop this vCPU.
        let _ = self.outbox.send(Acknowledged { number: command.number, answer });
        match command.order {
            Order::Pause => {
                self.fd.note_pause();
                Next::Wait
            }
            Order::Resume => Next::Enter,
            Order::Save(_) if self.stance == Stance::Running => Next::Enter,
            Order::Save(_) => Next::Wait,
            Order::Stop => Next::End,
        }
    }

    /// Runs the guest until it wants something, and gives it that.
    fn enter(&mut self) -> Next {
        let exit = self.fd.run();
        if let Some(error) = signals::take_bus_error() {
            return self.lost(lost::by_signal(self.index, error, &self.ram));
        }
        let exit = match exit {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return self.kicked(),
            Err(error) => return self.refused(error),
        };
        if let VcpuExit::MmioRead(address, _) | VcpuExit::MmioWrite(address, _) = exit
            && let Some(cause) = lost::by_mmio(self.index, address, &self.ram)
        {
            return self.lost(cause);
        }
        let unexpected = match exit {
            VcpuExit::IoIn(port, data) => return self.buses.port_in(port, data, &self.metrics),
            VcpuExit::IoOut(port, data) => return self.buses.port_out(port, data, &self.metrics),
            VcpuExit::MmioRead(address, data) => return self.buses.mmio_read(address, data, &self.metrics),
            VcpuExit::MmioWrite(address, data) => return self.buses.mmio_write(address, data, &self.metrics),
            VcpuExit::Intr | VcpuExit::IrqWindowOpen => return Next::Enter,
            // A triple fault is how a PC without a reset register restarts.
            VcpuExit::Shutdown => GuestEvent::Reset,
            VcpuExit::SystemEvent(kind, _) => exits::system_event(kind),
            VcpuExit::MemoryFault { gpa, .. } => {
                let cause = lost::cause(self.index, gpa, "KVM_EXIT_MEMORY_FAULT");
                GuestEvent::MemoryFailed { cause }
            }
            other => GuestEvent::VcpuFailed { index: self.index, cause: exits::describe(&other) },
        };
        self.report(unexpected)
    }

    /// Takes the kick back and looks for the command it came with.
    fn kicked(&mut self) -> Next {
        self.fd.clear_kick();
        match self.inbox.try_recv() {
            Ok(command) => self.obey(command),
            Err(TryRecvError::Empty) => Next::Enter,
            Err(TryRecvError::Disconnected) => Next::End,
        }
    }

    /// KVM does not run the guest.
    fn refused(&self, error: kvm_ioctls::Error) -> Next {
        match lost::by_errno(self.index, error.errno()) {
            Some(cause) => self.lost(cause),
            None => {
                let cause = format!("KVM_RUN: {error}");
                self.report(GuestEvent::VcpuFailed { index: self.index, cause })
            }
        }
    }

    fn lost(&self, cause: String) -> Next {
        self.report(GuestEvent::MemoryFailed { cause })
    }

    fn report(&self, event: GuestEvent) -> Next {
        if matches!(event, GuestEvent::VcpuFailed { .. } | GuestEvent::MemoryFailed { .. }) {
            self.metrics.failures.inc();
        }
        self.notifier.guest(event);
        Next::Wait
    }
}
