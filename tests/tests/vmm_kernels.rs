//! What `vmm` asks of KVM for a snapshot, asked of stock kernels: its own tests, on the lab's KVM with nested paging.
//!
//! Linux 6.1 and 6.12 list other registers, and take a clock's time of day both; the build machine's KVM may be of a
//! third kind.

use tests::cargo::unit_tests_of;
use tests::host::run_tests_in_lab;

/// The rooms that ask KVM for something.
const ROOMS: [&str; 1] = ["arch::x86_64::state::"];

fn vmm_on(series: &str) {
    run_tests_in_lab(series, &unit_tests_of("vmm"), &ROOMS, 25);
}

#[test]
fn stock_kernel_6_1() {
    vmm_on("6.1");
}

#[test]
fn stock_kernel_6_12() {
    vmm_on("6.12");
}
