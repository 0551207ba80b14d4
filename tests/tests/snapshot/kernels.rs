//! The bare-metal guest's snapshots on the kernels that hosts have, in the lab.

use std::env::current_exe;

use tests::host::run_tests_in_lab;

/// What a kernel can make a difference to: mapped, served, handed and captured memory.
const ROOMS: [&str; 4] = ["cycle::", "live::", "handed::", "contract::"];
/// How many tests are in them at least.
const TESTS_MIN: usize = 18;

#[test]
fn stock_kernel_6_1() {
    run_tests_in_lab("6.1", &current_exe().unwrap(), &ROOMS, TESTS_MIN);
}

#[test]
fn stock_kernel_6_12() {
    run_tests_in_lab("6.12", &current_exe().unwrap(), &ROOMS, TESTS_MIN);
}
