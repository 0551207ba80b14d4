//! Serial output: a bounded buffer, and the thread that writes it out.

use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::metrics::UartMetrics;
use crate::sync::lock;

/// How much output waits for a slow sink before more of it is dropped, in bytes: several screens.
pub(super) const BUFFER_BYTES_MAX: usize = 64 << 10;

/// How long output is waited for when the port goes away. A sink that is stopped loses what is left.
const LINGER: Duration = Duration::from_millis(500);

/// How long the thread sleeps when the sink is of the kind that does not block and has no room.
const RETRY: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Bytes the thread has taken and not written yet.
    in_hand_bytes: usize,
    closed: bool,
}

impl State {
    fn is_drained(&self) -> bool {
        self.waiting.is_empty() && self.in_hand_bytes == 0
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when there is output, and when it is to end.
    filled: Condvar,
    /// Notified when all is written.
    drained: Condvar,
}

/// Output on its way to a sink.
#[derive(Debug)]
pub(super) struct Output {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Output {
    pub(super) fn new(sink: Box<dyn Write + Send>, metrics: UartMetrics) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let writer = Writer { shared: Arc::clone(&shared), sink, metrics };
        let thread = std::thread::Builder::new().name("serial-out".to_owned()).spawn(move || writer.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes all of `bytes`, or none when they do not fit.
    pub(super) fn push(&self, bytes: &[u8]) -> bool {
        let mut state = lock(&self.shared.state);
        if state.waiting.len() + state.in_hand_bytes + bytes.len() > BUFFER_BYTES_MAX {
            return false;
        }
        // The thread sleeps only when nothing waits.
        if state.waiting.is_empty() {
            self.shared.filled.notify_one();
        }
        state.waiting.extend_from_slice(bytes);
        true
    }

    /// Waits until all is written, and says whether it is.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let state = lock(&self.shared.state);
        let waited = self.shared.drained.wait_timeout_while(state, timeout, |state| !state.is_drained());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_drained()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let drained = self.flush(LINGER);
        lock(&self.shared.state).closed = true;
        self.shared.filled.notify_one();
        // A thread that is blocked in a write cannot be ended. It goes when its sink does.
        if let Some(thread) = self.thread.take().filter(|_| drained)
            && thread.join().is_err()
        {
            tracing::error!("the thread for serial output has panicked");
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    sink: Box<dyn Write + Send>,
    metrics: UartMetrics,
}

impl Writer {
    fn run(mut self) {
        let mut batch = Vec::new();
        while self.take(&mut batch) {
            let written = self.write_out(&batch);
            if let Err((error, lost)) = written {
                tracing::debug!(%error, lost, "serial output is lost");
                self.metrics.error_count.inc();
                self.metrics.missed_write_count.inc_by(lost);
            }
        }
    }

    /// Puts the last batch away and waits for the next one. `false` when there will be none.
    fn take(&self, batch: &mut Vec<u8>) -> bool {
        batch.clear();
        let mut state = lock(&self.shared.state);
        state.in_hand_bytes = 0;
        if state.is_drained() {
            self.shared.drained.notify_all();
        }
        let idle = |state: &mut State| state.waiting.is_empty() && !state.closed;
        let mut state = self.shared.filled.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.waiting, batch);
        state.in_hand_bytes = batch.len();
        !batch.is_empty()
    }

    /// Writes all of `batch`, or says how much of it is lost and why.
    fn write_out(&mut self, batch: &[u8]) -> Result<(), (io::Error, u64)> {
        let mut rest = batch;
        let lost = |rest: &[u8]| u64::try_from(rest.len()).expect("a usize is at most 64 bits");
        while !rest.is_empty() {
            match self.sink.write(rest) {
                Ok(0) => return Err((ErrorKind::WriteZero.into(), lost(rest))),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && !self.is_closed() => {
                    std::thread::sleep(RETRY);
                }
                Err(error) => return Err((error, lost(rest))),
            }
        }
        self.sink.flush().map_err(|error| (error, 0))?;
        self.metrics.flush_count.inc();
        Ok(())
    }

    fn is_closed(&self) -> bool {
        lock(&self.shared.state).closed
    }
}
