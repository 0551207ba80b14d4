//! A guest whose memory has not arrived when it starts: every backing and kind of source, through KVM, and what becomes
//! of it when a page does not come. `tests/src/served` says what the words mean.
//!
//! | room | what is tried |
//! |---|---|
//! | `serving` | every backing, from every kind of source, protected or not |
//! | `failing` | pages that do not come |
//!
//! All of it runs on this machine's KVM, and on stock kernels of the lab: 6.1 has none of POISON, MOVE and
//! WP_UNPOPULATED, and there the next best is what is tested.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod failing;
mod serving;

use std::path::Path;
use std::time::{Duration, Instant};

use memory::uffd::{Feature, probe};
use serde_json::{Value, json};
use tests::guest::{Entry, bare_metal};
use tests::host::{HugePages, on_kvm_host, run_tests_in_lab};
use tests::served::{CONTENT_MIB, RAM_MIB, SEED, content};
use tests::vmm::{Launch, Vmm, WAIT};

fn launch(words: &str) -> Launch {
    Launch::new(&[]).program(Path::new(env!("CARGO_BIN_EXE_served")), &[words])
}

/// A VMM whose memory is served as `words` say, about to boot the guest with these commands.
fn configured(words: &str, commands: &str) -> Vmm {
    let vmm = Vmm::serve(launch(words).with_api());
    vmm.machine(1, u32::try_from(RAM_MIB).unwrap());
    vmm.boot_source(bare_metal(Entry::Linux64), None, commands);
    vmm
}

fn booted(words: &str, commands: &str) -> Vmm {
    let vmm = configured(words, commands);
    vmm.start_instance();
    vmm
}

fn walk() -> String {
    format!("walk {CONTENT_MIB} {SEED}")
}

/// All of both rooms on a stock kernel, in one boot of the lab.
fn all_in_lab(series: &str) {
    content::image().unwrap();
    let executable = std::env::current_exe().unwrap();
    run_tests_in_lab(series, &executable, &["--skip", "stock_kernel"], 16);
}

#[test]
fn stock_kernel_6_1() {
    all_in_lab("6.1");
}

#[test]
fn stock_kernel_6_12() {
    all_in_lab("6.12");
}
