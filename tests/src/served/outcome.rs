//! What came of it, when the VMM has ended.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use memory::fault::FaultEngine;
use vmm::machine::memory::Started;

use super::content;
use super::observer::{Comparing, Tally};

/// Something that was served was wrong.
const EXIT_WRONG: u8 = 99;

/// What is looked at in the end.
#[derive(Default)]
pub struct Outcome {
    engine: Arc<OnceLock<Arc<FaultEngine>>>,
    tally: Arc<Tally>,
    /// What no guest must have changed.
    kept: Option<File>,
}

impl Outcome {
    pub(super) fn keeps(&mut self, memfd: OwnedFd) {
        self.kept = Some(memfd.into());
    }

    /// To be handed the engine; it protects all memory, if it is to.
    pub(super) fn observe(&self, protects: bool) -> Started {
        let (slot, tally) = (Arc::clone(&self.engine), Arc::clone(&self.tally));
        Box::new(move |engine| {
            if protects && let Err(stop) = engine.protect(Box::new(Comparing::new(tally))) {
                panic!("memory cannot be protected: {stop}");
            }
            // There is one engine in a process's life.
            let _ = slot.set(Arc::clone(engine));
        })
    }

    /// Says what was served, and what to exit with where the VMM would with `code`.
    #[must_use]
    pub fn check(self, code: ExitCode) -> ExitCode {
        if let Some(engine) = self.engine.get() {
            let report = engine.report();
            let counts: Vec<_> =
                report.counts.list().iter().map(|(name, _, count)| format!("{name}={count}")).collect();
            eprintln!("served: {}", counts.join(" "));
            for (source, verb, latency) in &report.latencies {
                eprintln!("served: {source} {} {} pages", verb.name(), latency.count);
            }
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (told, again, wrong) =
            (count(&self.tally.told), count(&self.tally.again), count(&self.tally.wrong));
        eprintln!("served: told={told} again={again} wrong={wrong}");
        if self.kept.is_some_and(|memfd| !content::is_unchanged(&memfd)) {
            eprintln!("served: the guest changed the memfd that it is a clone of");
            return ExitCode::from(EXIT_WRONG);
        }
        if wrong > 0 { ExitCode::from(EXIT_WRONG) } else { code }
    }
}
