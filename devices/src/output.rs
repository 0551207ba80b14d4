//! Output to whatever the host gives, without waiting for it: a bounded buffer, and the thread that writes it out.
//!
//! A terminal can be stopped, a pipe can be left unread, a disk can hang, and none of them says so beforehand. Only a
//! thread of its own can safely be blocked by them. What does not fit into the buffer meanwhile is dropped and counted.

use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use crate::sync::lock;

/// How much output waits for a slow sink before more of it is dropped, in bytes: several screens.
pub const BUFFER_BYTES_MAX: usize = 64 << 10;

/// How long output is waited for when its end is dropped. A sink that is stopped loses what is left.
const LINGER: Duration = Duration::from_millis(500);

/// How long more is gathered after something was written. The first byte of many is written at once, and whoever says
/// more is not interrupted by each.
const GATHERING: Duration = Duration::from_micros(500);
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

/// What an output counts. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct OutputCounters {
    /// Bytes that the sink did not take.
    pub lost_bytes: Counter,
    /// Writes that failed.
    pub errors: Counter,
    /// Times that all there was had been written.
    pub flushes: Counter,
}

/// Output on its way to a sink.
///
/// It logs nothing: a log may be what it carries.
#[derive(Debug)]
pub struct Output {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Output {
    /// Output to `sink`, written by a thread called `thread_name`.
    ///
    /// # Errors
    ///
    /// When the host gives no thread.
    pub fn new(thread_name: &str, sink: Box<dyn Write + Send>, counters: OutputCounters) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let writer = Writer { shared: Arc::clone(&shared), sink, counters };
        let thread = std::thread::Builder::new().name(thread_name.to_owned()).spawn(move || {
            // What a guest says is heard while it runs. Where the host does not let us, it may be heard later.
            let _ = memory::threads::be_urgent();
            writer.run();
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes all of `bytes`, or none when they do not fit.
    #[must_use]
    pub fn push(&self, bytes: &[u8]) -> bool {
        let mut state = lock(&self.shared.state);
        if state.waiting.len() + state.in_hand_bytes + bytes.len() > BUFFER_BYTES_MAX {
            return false;
        }
        // The thread waits to be told only when nothing waits.
        if state.waiting.is_empty() {
            self.shared.filled.notify_one();
        }
        state.waiting.extend_from_slice(bytes);
        true
    }

    /// Waits until all is written, and says whether it is.
    #[must_use]
    pub fn flush(&self, timeout: Duration) -> bool {
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
        if let Some(thread) = self.thread.take().filter(|_| drained) {
            // A panic of the sink's ends with its thread: the output is at its end anyway.
            let _ = thread.join();
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    sink: Box<dyn Write + Send>,
    counters: OutputCounters,
}

impl Writer {
    fn run(mut self) {
        let mut batch = Vec::new();
        while self.take(&mut batch) {
            match self.write_out(&batch) {
                Ok(()) => self.counters.flushes.inc(),
                Err(lost_bytes) => {
                    self.counters.lost_bytes.inc_by(lost_bytes);
                    self.counters.errors.inc()
                }
            };
            if !self.put_away() {
                std::thread::sleep(GATHERING);
            }
        }
    }

    /// What was in hand is written, or lost. Says whether nothing more is to be gathered.
    fn put_away(&self) -> bool {
        let mut state = lock(&self.shared.state);
        state.in_hand_bytes = 0;
        if state.is_drained() {
            self.shared.drained.notify_all();
        }
        state.closed
    }

    /// Waits for the next batch. `false` when there will be none.
    fn take(&self, batch: &mut Vec<u8>) -> bool {
        batch.clear();
        let state = lock(&self.shared.state);
        let idle = |state: &mut State| state.waiting.is_empty() && !state.closed;
        let mut state = self.shared.filled.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.waiting, batch);
        state.in_hand_bytes = batch.len();
        !batch.is_empty()
    }

    /// Writes all of `batch`, or says how many bytes of it are lost.
    fn write_out(&mut self, batch: &[u8]) -> Result<(), u64> {
        let mut rest = batch;
        let lost = |rest: &[u8]| u64::try_from(rest.len()).expect("a usize is at most 64 bits");
        while !rest.is_empty() {
            match self.sink.write(rest) {
                Ok(0) => return Err(lost(rest)),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && !self.is_closed() => {
                    std::thread::sleep(RETRY);
                }
                Err(_) => return Err(lost(rest)),
            }
        }
        self.sink.flush().map_err(|_| 0)
    }

    fn is_closed(&self) -> bool {
        lock(&self.shared.state).closed
    }
}
