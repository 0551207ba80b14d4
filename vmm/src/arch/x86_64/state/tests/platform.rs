//! The guest's clock, across time.

use super::super::{ClockPolicy, PlatformState, StateError};
use super::guest::{Machine, Peers};
use crate::kvm;

const HOUR_NS: u64 = 3_600_000_000_000;
const DAY_NS: u64 = 24 * HOUR_NS;

/// What the clock of a new VM shows that is given one of a day, saved two hours ago.
fn clock_after(policy: ClockPolicy) -> u64 {
    let kvm = kvm::open().unwrap();
    let mut machine = Machine::new(&kvm, &Peers::new());
    let mut saved = machine.save().platform;
    saved.clock_ns = DAY_NS;
    saved.realtime_ns -= 2 * HOUR_NS;
    saved.restore(&machine.vm, policy).unwrap();
    PlatformState::save(&machine.vm).unwrap().clock_ns
}

#[test]
fn it_goes_on_where_it_was() {
    let clock_ns = clock_after(ClockPolicy::Continue);
    assert!((DAY_NS..DAY_NS + HOUR_NS).contains(&clock_ns), "{clock_ns}");
}

#[test]
fn it_is_put_ahead_by_what_has_passed() {
    let clock_ns = clock_after(ClockPolicy::Realtime);
    assert!((DAY_NS + 2 * HOUR_NS..DAY_NS + 3 * HOUR_NS).contains(&clock_ns), "{clock_ns}");
}

#[test]
fn controllers_in_a_wrong_order_are_refused() {
    let kvm = kvm::open().unwrap();
    let mut machine = Machine::new(&kvm, &Peers::new());
    let mut saved = machine.save().platform;
    saved.chips.swap(0, 2);
    let refused = saved.restore(&machine.vm, ClockPolicy::Continue);
    assert!(matches!(refused, Err(StateError::Damaged { .. })), "{refused:?}");
}
