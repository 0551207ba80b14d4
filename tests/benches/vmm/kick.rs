//! How soon a guest that never exits by itself is stopped.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::guest::{Entry, bare_metal};
use tests::vmm::Vmm;

use crate::figure::{Figure, Target, Unit, milliseconds};
use crate::options::Effort;

const PAUSE: Target = Target { percentile: 99.0, limit: 1.0 };
/// Time for the guest to be inside again before the next pause: what is measured is to take it out.
const RUN_TIME: Duration = Duration::from_millis(1);

/// Pausing and resuming over the API, and a request that only asks, to see what of it is the API.
pub(crate) fn round_trips(effort: &Effort) -> [Figure; 3] {
    let mut vmm = Vmm::start();
    vmm.machine(1, 128);
    vmm.boot_source(bare_metal(Entry::Linux64), None, "spin");
    vmm.start_instance();
    vmm.wait_for_line("guest: spinning");
    let (mut pauses, mut resumes, mut looks) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.requests {
        looks.push(timed(&vmm, "GET", "/", &Value::Null));
        pauses.push(timed(&vmm, "PATCH", "/vm", &json!({ "state": "Paused" })));
        resumes.push(timed(&vmm, "PATCH", "/vm", &json!({ "state": "Resumed" })));
        std::thread::sleep(RUN_TIME);
    }
    let figure = |name, samples| Figure::new(name, Unit::Milliseconds, milliseconds(samples));
    [
        figure("PATCH /vm Paused, guest spinning (kick and API)", pauses).with_target(PAUSE),
        figure("PATCH /vm Resumed", resumes),
        figure("GET / meanwhile (API alone)", looks),
    ]
}

fn timed(vmm: &Vmm, method: &str, path: &str, body: &Value) -> Duration {
    let started = Instant::now();
    vmm.grant(method, path, body);
    started.elapsed()
}
