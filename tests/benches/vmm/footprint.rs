//! What a microVM takes besides its RAM, and what the program takes on disk.

use std::fs;

use tests::guest::{Entry, bare_metal};
use tests::vmm::{Vmm, binary};

use crate::figure::{Figure, Target, Unit};
use crate::options::Effort;
use crate::samples::Samples;

const MEMORY_MIB: u32 = 128;
const MEMORY_MIB_MAX: f64 = 4.0;
const KIB_PER_MIB: f64 = 1024.0;

/// The process's proportional share of memory beyond guest RAM.
///
/// The guest has said hello, and spins: in ring 3 it cannot halt, but neither does it touch RAM or exit.
pub(crate) fn memory_beyond_ram(effort: &Effort) -> Figure {
    let samples = (0..effort.footprints).map(|_| {
        let mut vmm = Vmm::start();
        vmm.machine(1, MEMORY_MIB);
        vmm.boot_source(bare_metal(Entry::Linux64), None, "hello spin");
        vmm.start_instance();
        vmm.wait_for_line("guest: spinning");
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", vmm.id()));
        pss_beyond_ram_kib(&smaps.expect("a child's maps can be read")) as f64 / KIB_PER_MIB
    });
    let name = format!("PSS beyond guest RAM, idle, 1 vCPU, {MEMORY_MIB} MiB");
    Figure::new(name, Unit::Mebibytes, Samples::new(samples.collect()))
        .with_target(Target::median(MEMORY_MIB_MAX))
}

/// The sum of `Pss` over all mappings but guest RAM's: the one that is as large as RAM, or larger by what aligns it.
fn pss_beyond_ram_kib(smaps: &str) -> u64 {
    let ram_kib = u64::from(MEMORY_MIB) << 10;
    let (mut size_kib, mut sum_kib, mut ram_mappings) = (0, 0, 0);
    for line in smaps.lines() {
        if let Some(value) = kib(line, "Size:") {
            size_kib = value;
            ram_mappings += usize::from(size_kib >= ram_kib);
        }
        if let Some(value) = kib(line, "Pss:").filter(|_| size_kib < ram_kib) {
            sum_kib += value;
        }
    }
    assert_eq!(ram_mappings, 1, "guest RAM is one mapping, and no other is as large:\n{smaps}");
    sum_kib
}

/// The value of a line such as `Pss:     12 kB`.
fn kib(line: &str, field: &str) -> Option<u64> {
    line.strip_prefix(field)?.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The size of the program.
pub(crate) fn binary_size() -> Figure {
    let bytes = fs::metadata(binary()).expect("the program under test is there").len();
    Figure::new(
        "size of the binary",
        Unit::Mebibytes,
        Samples::new(vec![bytes as f64 / KIB_PER_MIB / KIB_PER_MIB]),
    )
}
