//! A guest that is moved from machine to machine while it counts, and notices nothing.

use std::thread;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::super::VcpuState;
use super::guest::{
    self, AFTER_IN, AFTER_INC, AFTER_LOAD, AFTER_OUT, LOOP, Machine, Peer, Peers, Saved, VCPUS, look,
};
use crate::kvm;

const ROUNDS: u64 = 100;

/// A time that differs from round to round, and not from run to run.
fn run_time(round: u64) -> Duration {
    Duration::from_micros(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 53) // up to 2 ms
}

#[test]
fn a_guest_goes_on_where_it_was_a_hundred_times() {
    let kvm = kvm::open().unwrap();
    let peers = Peers::new();
    let mut machine = Machine::new(&kvm, &peers);
    for round in 0..ROUNDS {
        machine.vcpus.resume().unwrap();
        thread::sleep(run_time(round));
        machine.vcpus.pause().unwrap();
        let saved = machine.save();
        saved.vcpus.iter().enumerate().for_each(|(index, state)| assert_whole(state, &peers, index));
        machine.vcpus.stop().unwrap();
        assert!(machine.events.try_recv().is_err(), "the guest ran into something");
        drop(machine);

        let bytes = postcard::to_allocvec(&saved).unwrap();
        let saved: Saved = postcard::from_bytes(&bytes).unwrap();
        machine = Machine::restored(&kvm, &peers, &saved);
        assert_same(&saved, &machine.save(), round);
    }
    assert_alive(machine, &peers);
}

/// Each vCPU counts on, those with a timer get its interrupts, and XMM registers hold what they were given.
fn assert_alive(mut machine: Machine, peers: &Peers) {
    let told = || -> Vec<u32> { peers.ports.iter().map(|peer| look(peer, |peer| peer.told)).collect() };
    let ticks = |machine: &Machine| {
        let read = |address| machine.ram.read_obj::<u32>(GuestAddress(address)).unwrap();
        (read(guest::data_base(0) + 8), read(guest::data_base(1) + 4))
    };
    let (told_before, ticks_before) = (told(), ticks(&machine));
    machine.vcpus.resume().unwrap();
    for _ in 0..10_000 {
        thread::sleep(Duration::from_millis(1));
        let more_told = told().iter().zip(&told_before).all(|(now, before)| now > before);
        let now = ticks(&machine);
        if more_told && now.0 > ticks_before.0 && now.1 > ticks_before.1 {
            break;
        }
    }
    machine.vcpus.pause().unwrap();
    let saved = machine.save();
    let ticked = ticks(&machine);
    assert!(ticked.0 > ticks_before.0, "the interval timer is dead after {ticks_before:?}");
    assert!(ticked.1 > ticks_before.1, "the APIC's timer is dead after {ticks_before:?}");
    for index in 0..VCPUS {
        let at = usize::from(index);
        assert!(told()[at] > told_before[at], "vCPU {index} is dead");
        assert_eq!(look(&peers.ports[at], |peer| peer.out_of_order), 0, "vCPU {index} lost count");
        assert_patterns(&saved.vcpus[at], index);
    }
    machine.vcpus.stop().unwrap();
}

fn assert_patterns(state: &VcpuState, index: u8) {
    for register in 0..16 {
        let place = guest::XMM_PLACE + 16 * usize::from(register);
        let xmm = &state.xsave[place..place + 16];
        assert_eq!(xmm, guest::pattern(index, register), "vCPU {index}, XMM{register}");
    }
}

/// What vCPU `index` has in its registers is what it told and was given: no access is open.
pub(super) fn assert_whole(state: &VcpuState, peers: &Peers, index: usize) {
    let regs = &state.regs.0;
    let low = |register: u64| u32::try_from(register & 0xffff_ffff).unwrap();
    let at = |rip: std::ops::Range<u64>| rip.contains(&regs.rip);
    if !at(LOOP..LOOP + 37) {
        return; // In a handler of an interrupt, or not yet in the loop.
    }
    let (told, given) = look(&peers.ports[index], |peer: &Peer| (peer.told, peer.given));
    let loaded = look(&peers.registers[index], |peer| peer.given);
    let untold = u32::from(at(AFTER_INC..AFTER_OUT));
    assert_eq!(low(regs.rbx), told + untold, "vCPU {index} at {:#x}", regs.rip);
    // All that was given is added up, but for what has just come in.
    let sum = |count: u32| (1..=count).fold(0_u32, u32::wrapping_add);
    let fresh = |address| if regs.rip == address { low(regs.rax) } else { 0 };
    assert_eq!(low(regs.rbp).wrapping_add(fresh(AFTER_IN)), sum(given), "vCPU {index} at {:#x}", regs.rip);
    assert_eq!(low(regs.rsi).wrapping_add(fresh(AFTER_LOAD)), sum(loaded), "vCPU {index} at {:#x}", regs.rip);
}

/// Local APIC registers that time changes: the timer's count, pending interrupts, and the priority that follows.
const APIC_MOVING: [std::ops::Range<usize>; 3] = [0x390..0x394, 0x200..0x280, 0xa0..0xa4];
const IA32_TSC: u32 = 0x10;

fn assert_same(before: &Saved, after: &Saved, round: u64) {
    // All count alike, from the moment at which the first was read.
    let stopped = before.vcpus.iter().map(|state| msr(state, IA32_TSC)).min().unwrap();
    for (index, (old, new)) in before.vcpus.iter().zip(&after.vcpus).enumerate() {
        assert_equal(&still(old), &still(new), &format!("round {round}, vCPU {index}"));
        assert!(msr(new, IA32_TSC) >= stopped, "round {round}: the TSC of vCPU {index} went back");
        let pending = |state: &VcpuState| state.lapic.0.regs[0x200..0x280].to_vec();
        let is_kept = pending(old).iter().zip(pending(new)).all(|(old, new)| old & new == *old);
        assert!(is_kept, "round {round}: vCPU {index} lost an interrupt");
    }
    // Lines move with the timer, but not what they are wired to.
    let wired = |saved: &Saved| saved.platform.chips.map(|chip| [&chip.0[..8], &chip.0[10..16]].concat());
    assert_eq!(wired(before), wired(after), "round {round}");
    let modes = |saved: &Saved| saved.platform.pit.0.channels.map(|channel| (channel.count, channel.mode));
    assert_eq!(modes(before), modes(after), "round {round}");
    assert!(after.platform.clock_ns >= before.platform.clock_ns, "round {round}: the clock went back");
}

/// Says what differs, where the whole would fill pages.
fn assert_equal(old: &VcpuState, new: &VcpuState, what: &str) {
    let moved: Vec<_> = old.msrs.iter().zip(&new.msrs).filter(|(old, new)| old != new).collect();
    assert!(moved.is_empty() && old.msrs.len() == new.msrs.len(), "{what}: {moved:x?}");
    let leaves: Vec<_> = old.cpuid.iter().zip(&new.cpuid).filter(|(old, new)| old != new).collect();
    assert!(leaves.is_empty(), "{what}: {leaves:x?}");
    let bytes: Vec<_> = (0..old.xsave.len()).filter(|&at| old.xsave[at] != new.xsave[at]).collect();
    assert!(bytes.is_empty(), "{what}: bytes {bytes:?} of the FPU");
    let registers: Vec<_> = (0..1024).filter(|&at| old.lapic.0.regs[at] != new.lapic.0.regs[at]).collect();
    assert!(registers.is_empty(), "{what}: bytes {registers:x?} of the local APIC");
    assert_eq!(old.regs, new.regs, "{what}");
    assert_eq!(old.sregs, new.sregs, "{what}");
    assert_eq!(old.events, new.events, "{what}");
    assert!(old == new, "{what}: something else differs");
}

/// `state` without what time changes.
fn still(state: &VcpuState) -> VcpuState {
    let mut state = state.clone();
    state.msrs.retain(|msr| msr.index != IA32_TSC);
    APIC_MOVING.into_iter().for_each(|range| state.lapic.0.regs[range].fill(0));
    state
}

fn msr(state: &VcpuState, index: u32) -> u64 {
    state.msrs.iter().find(|msr| msr.index == index).expect("it was saved").value
}

#[test]
fn what_was_set_is_what_is_saved() {
    let kvm = kvm::open().unwrap();
    let saved = Machine::new(&kvm, &Peers::new()).save();
    for (state, index) in saved.vcpus.iter().zip(0..) {
        assert_eq!(state.regs.0.r15, 0x1234_5678_9abc_def0 + index);
        assert_eq!(state.sregs.0.cr2, 0xdead_0000 + index);
        assert_patterns(state, u8::try_from(index).unwrap());
        assert_eq!(state.debugregs.0.db, [0x1000, 0x2000, 0x3000, 0x4000]);
        assert_eq!(msr(state, guest::SYSENTER_EIP), 0x4321 + index);
        assert_eq!(msr(state, guest::LSTAR), 0xffff_8000_dead_0000 + index);
        assert_eq!(msr(state, guest::KVM_SYSTEM_TIME), 0x2_0001 + index * 0x1000);
        assert_eq!(msr(state, guest::TSC_DEADLINE), if index == 2 { guest::DEADLINE } else { 0 });
    }
}
