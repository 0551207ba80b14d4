//! The guest's serial console: the VMM's output, read as it comes, and its input.

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// More than any test prints; a guest gone wild is cut off here.
const PRINTED_BYTES_MAX: usize = 4 << 20;

pub(super) struct Console {
    shared: Arc<Shared>,
    input: Box<dyn Write + Send>,
    /// How much of what was printed the waits have passed over.
    seen: usize,
}

#[derive(Default)]
struct Shared {
    output: Mutex<Output>,
    changed: Condvar,
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    /// When the first of them came.
    began: Option<Instant>,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Console {
    pub(super) fn new(input: impl Write + Send + 'static, output: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let reader = Arc::clone(&shared);
        // It ends when the last holder of the other end is gone, so nobody needs to wait for it.
        std::thread::spawn(move || read_all(output, &reader));
        Self { shared, input: Box::new(input), seen: 0 }
    }

    /// The next whole line with `text` in it; or else, after `limit` or at the output's end, all that was printed.
    pub(super) fn wait_for_line(&mut self, text: &str, limit: Duration) -> Result<String, String> {
        let deadline = Instant::now() + limit;
        let mut output = self.shared.lock();
        loop {
            while let Some(length) = output.bytes[self.seen..].iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&output.bytes[self.seen..self.seen + length]).into_owned();
                self.seen += length + 1;
                if line.contains(text) {
                    return Ok(line.trim_end().to_owned());
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || output.closed {
                return Err(String::from_utf8_lossy(&output.bytes).into_owned());
            }
            output = self.shared.changed.wait_timeout(output, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn type_text(&mut self, text: &str) {
        let typed = self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush());
        typed.expect("the process reads its stdin");
    }

    /// When the first byte was printed.
    pub(super) fn began(&self) -> Option<Instant> {
        self.shared.lock().began
    }

    pub(super) fn printed(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().bytes).into_owned()
    }
}

impl Output {
    fn add(&mut self, bytes: &[u8], now: Instant) {
        if !bytes.is_empty() {
            self.began.get_or_insert(now);
        }
        if self.bytes.len() + bytes.len() <= PRINTED_BYTES_MAX {
            self.bytes.extend_from_slice(bytes);
        }
        self.closed |= bytes.is_empty();
    }
}

fn read_all(mut output: impl Read, shared: &Shared) {
    let mut buffer = [0; 4096];
    loop {
        // A terminal that nobody holds open any more answers EIO.
        let count = output.read(&mut buffer).unwrap_or(0);
        let now = Instant::now();
        let mut printed = shared.lock();
        printed.add(&buffer[..count], now);
        shared.changed.notify_all();
        if printed.closed {
            return;
        }
    }
}
