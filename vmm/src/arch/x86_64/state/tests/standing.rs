//! When a vCPU can be saved, through its thread.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::guest::{Machine, Peers};
use super::round_trip::assert_whole;
use crate::kvm;
use crate::vcpu::VcpuError;

#[test]
fn one_that_runs_is_not_saved_and_runs_on() {
    let kvm = kvm::open().unwrap();
    let peers = Peers::new();
    let mut machine = Machine::new(&kvm, &peers);
    machine.vcpus.resume().unwrap();
    let refused = machine.vcpus.save(&machine.extent);
    assert!(matches!(refused, Err(VcpuError::NotPaused { index: 0 })), "{refused:?}");
    machine.vcpus.pause().unwrap();
    machine.vcpus.save(&machine.extent).unwrap();
    machine.vcpus.resume().unwrap();
    machine.vcpus.stop().unwrap();
}

/// Most pauses hit a guest that talks to devices most of its time, so most accesses are ended by the pause.
#[test]
fn a_pause_ends_the_last_access() {
    let kvm = kvm::open().unwrap();
    let peers = Peers::new();
    let mut machine = Machine::new(&kvm, &peers);
    // A host in software takes its time for each.
    let enough = Instant::now() + Duration::from_secs(20);
    for _ in (0..1000).take_while(|_| Instant::now() < enough) {
        machine.vcpus.resume().unwrap();
        machine.vcpus.pause().unwrap();
        let states = machine.vcpus.save(&machine.extent).unwrap();
        states.iter().enumerate().for_each(|(index, state)| assert_whole(state, &peers, index));
    }
    machine.vcpus.stop().unwrap();
}

/// Its last access is not finished, and a pause does not finish it.
#[test]
fn one_whose_guest_has_ended_is_not_saved() {
    let kvm = kvm::open().unwrap();
    let mut machine = Machine::new(&kvm, &Peers::new());
    machine.ended.store(true, Ordering::Release);
    machine.vcpus.resume().unwrap();
    // Each writes to its port sooner or later, and stays out then.
    let is_out = |machine: &mut Machine| {
        machine.vcpus.pause().unwrap();
        let saved = machine.vcpus.save(&machine.extent);
        saved.is_err_and(|error| matches!(error, VcpuError::NotPaused { .. }))
    };
    let enough = Instant::now() + Duration::from_secs(60);
    for _ in (0..10_000).take_while(|_| Instant::now() < enough) {
        if is_out(&mut machine) {
            break;
        }
        machine.vcpus.resume().unwrap();
    }
    assert!(is_out(&mut machine), "another pause changes nothing");
    machine.vcpus.stop().unwrap();
}
