//! Many guests from one snapshot, on one host.
//!
//! A guest that has said something and written its share is paused: it cannot halt, and would take a processor from
//! those that come after it.

use tests::vmm::SnapshotFiles;

use crate::guest::{Guest, Pages, blocks_mib, command, folder, proportional_mib};
use crate::options::Effort;
use crate::report::Section;
use crate::row::{Promise, Ratio, Row, Unit};
use crate::way::{Restored, Way};

const OUTPUT_MS_MAX: Promise = Promise::AtMost(15.0);
const SHARE_MAX: Promise = Promise::AtMost(1.0);
/// What each writes.
const WRITTEN_MIB: u64 = 4;
/// What each may take besides.
const BESIDES_MIB: f64 = 3.0;

/// The rows of this part.
pub(crate) fn measure(effort: &Effort) -> Section {
    let count = effort.clones;
    let title = format!(
        "{count} clones of one snapshot by the backend File, one after the other, each writing {WRITTEN_MIB} MiB: {} \
         rounds",
        effort.broods
    );
    let folder = folder();
    let files = Guest::new(Pages::Base).saved(folder.path());
    let (mut outputs, mut slowest, mut taken, mut allowed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.broods {
        let clones: Vec<_> = (0..count).map(|_| clone(&files)).collect();
        let times: Vec<_> = clones.iter().map(|clone| clone.output_ms).collect();
        slowest.push(times.iter().copied().fold(0.0, f64::max));
        outputs.extend(times);
        taken.push(clones.iter().map(|clone| proportional_mib(&clone.vmm)).sum());
        allowed.push(blocks_mib(&files.memory) + count as f64 * (WRITTEN_MIB as f64 + BESIDES_MIB));
    }
    let rows = vec![
        Row::new("PUT to first output, each", Unit::Milliseconds, outputs).promised(OUTPUT_MS_MAX),
        Row::new("PUT to first output, the slowest of a round", Unit::Milliseconds, slowest)
            .promised(OUTPUT_MS_MAX),
        Row::beside("PSS of all", Unit::Mebibytes, taken, ("file, written, 3 MiB each", allowed), Ratio::Of)
            .promised(SHARE_MAX),
    ];
    Section { title, rows }
}

fn clone(files: &SnapshotFiles) -> Restored {
    let mut clone = Way::File.restore(files);
    command(&mut clone.vmm, &format!("touch-write {WRITTEN_MIB}"));
    clone.vmm.pause();
    clone
}
