//! What `memory` asks of a kernel, asked of stock ones: its own tests, on the lab's kernels.
//!
//! Linux 6.1 has none of POISON, MOVE, WP_ASYNC, WP_UNPOPULATED and PAGEMAP_SCAN: what is done there instead is tested
//! by the same tests.

use tests::cargo::unit_tests_of;
use tests::host::run_tests_in_lab;

/// The rooms that ask the kernel for something. What is pure is the same on any kernel, and slow on an emulated one.
const ROOMS: [&str; 5] = ["uffd::", "ram::", "dirty::", "staging::", "fault::tests::"];

fn memory_on(series: &str) {
    run_tests_in_lab(series, &unit_tests_of("memory"), &ROOMS, 60);
}

#[test]
fn stock_kernel_6_1() {
    memory_on("6.1");
}

#[test]
fn stock_kernel_6_12() {
    memory_on("6.12");
}
