//! What is done when a guest cannot go on.
//!
//! Memory that has failed ends the machine, or, where somebody can ask for the state, only stops it: the cause stays to
//! be seen until the process is ended.

use super::{Driver, Ending};
use crate::machine::memory::Memory;
use crate::machine::message::GuestEvent;
use crate::machine::state::VmState;

impl Driver {
    /// Says how the machine ends by what a guest has done, if it does.
    ///
    /// A guest whose memory has failed may do anything next, a reset for example: that is not its will, then.
    pub(super) fn heed(&mut self, event: GuestEvent) -> Option<Ending> {
        if let GuestEvent::HandlerGone { cause } = event {
            self.lose_handler(cause);
            return None;
        }
        let memory = self.vm.as_ref().map(|vm| &vm.memory);
        let cause = match event {
            GuestEvent::MemoryFailed { cause } => match memory?.awaited_failure() {
                Some(failure) if !cause.contains(&failure) => format!("{cause}: {failure}"),
                _ => cause,
            },
            event => match memory.and_then(Memory::failure) {
                Some(cause) => cause,
                None => return Ending::by(event),
            },
        };
        if !self.keeps_failed {
            return Some(Ending::MemoryFailed(cause));
        }
        self.fail(&cause);
        None
    }

    /// The guest goes on as far as it has its pages, and the state says why no further.
    fn lose_handler(&mut self, cause: String) {
        if let Some(vm) = &self.vm {
            vm.memory.handlers_gone.inc();
        }
        self.publication.publish_handler(Some(cause));
    }

    /// The guest stands still from now on, and the state says why.
    fn fail(&mut self, cause: &str) {
        let next = self.state.failed(cause);
        if next == self.state {
            return;
        }
        tracing::error!(cause, "the microVM is stopped for good");
        if let Some(vm) = &mut self.vm {
            vm.memory.failures.inc();
            if self.state == VmState::Running
                && let Err(error) = vm.halt()
            {
                tracing::warn!(%error, "a part of the microVM waits for what will not come");
            }
        }
        self.state = next;
        self.publication.publish(&self.state);
    }
}
