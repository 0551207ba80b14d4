//! A generation over guest memory, without a guest.

use std::collections::HashSet;

use memory::{Backing, RamRange};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::interrupt::IrqFd;

const PLACE: Place = Place { id: 0x3010, clock: 0x2000 };

fn ram() -> GuestRam {
    let range = RamRange { gpa: GuestAddress(0), size_bytes: 1 << 20 };
    GuestRam::new(&[range], Backing::Anonymous { transparent_huge_pages: false }).unwrap()
}

fn line() -> (Arc<dyn Interrupt>, EventFd) {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    (Arc::new(IrqFd(event.try_clone().unwrap())), event)
}

fn id_in(ram: &GuestRam) -> [u8; ID_BYTES] {
    ram.read_obj(GuestAddress(PLACE.id)).unwrap()
}

fn clock_in(ram: &GuestRam) -> [u8; 4096] {
    let mut page = [0; 4096];
    ram.read_slice(&mut page, GuestAddress(PLACE.clock)).unwrap();
    page
}

#[test]
fn a_new_guest_finds_an_id_and_a_clock_and_is_told_nothing() {
    let (ram, (line, event)) = (ram(), line());
    ram.write_slice(&[0xee; 0x4000], GuestAddress(0)).unwrap();
    let generation = Generation::attach(ram.clone(), PLACE, line).unwrap();
    assert_eq!(id_in(&ram), generation.state().id);
    assert_eq!(clock_in(&ram), ClockCounters::default().page());
    for around in [PLACE.id - 1, PLACE.id + 16, PLACE.clock - 1, PLACE.clock + 4096] {
        assert_eq!(ram.read_obj::<u8>(GuestAddress(around)).unwrap(), 0xee, "{around:#x}");
    }
    assert!(event.read().is_err());
}

#[test]
fn every_renewal_is_a_new_id_and_one_interrupt() {
    let (ram, (line, event)) = (ram(), line());
    let mut generation = Generation::attach(ram.clone(), PLACE, line).unwrap();
    let mut seen = HashSet::from([id_in(&ram)]);
    for count in 1..=100 {
        generation.renew().unwrap();
        assert!(seen.insert(id_in(&ram)), "an ID came twice");
        let counters = ClockCounters {
            seq_count: count * 2,
            disruption_marker: count.into(),
            generation_counter: count.into(),
        };
        assert_eq!(clock_in(&ram), counters.page());
        assert_eq!(event.read().unwrap(), 1);
    }
}

#[test]
fn a_guest_that_moved_keeps_its_id() {
    let (ram, (line, event)) = (ram(), line());
    let mut generation = Generation::attach(ram.clone(), PLACE, line).unwrap();
    let id = id_in(&ram);
    generation.moved().unwrap();
    assert_eq!(id_in(&ram), id);
    let counters = ClockCounters { seq_count: 2, disruption_marker: 1, generation_counter: 0 };
    assert_eq!(clock_in(&ram), counters.page());
    assert_eq!(event.read().unwrap(), 1);
}

#[test]
fn clones_of_one_state_differ_and_restoring_alone_changes_nothing() {
    let saved = Generation::attach(ram(), PLACE, line().0).unwrap().state();
    let clone = || {
        let (ram, (line, event)) = (ram(), line());
        let mut generation = Generation::restore(&saved, ram.clone(), line).unwrap();
        assert_eq!(generation.state(), saved);
        assert_eq!(clock_in(&ram), [0; 4096], "memory is what was saved with it");
        assert!(event.read().is_err());
        generation.renew().unwrap();
        (id_in(&ram), clock_in(&ram))
    };
    let ((one, its_clock), (other, other_clock)) = (clone(), clone());
    assert!(one != other && one != saved.id && other != saved.id);
    assert_eq!(its_clock, other_clock);
}

#[test]
fn what_a_guest_writes_there_is_written_over() {
    let (ram, (line, _event)) = (ram(), line());
    let mut generation = Generation::attach(ram.clone(), PLACE, line).unwrap();
    ram.write_slice(&[0xff; 4096], GuestAddress(PLACE.clock)).unwrap();
    ram.write_slice(&[0xff; ID_BYTES], GuestAddress(PLACE.id)).unwrap();
    generation.renew().unwrap();
    assert_eq!(id_in(&ram), generation.state().id);
    assert_eq!(clock_in(&ram), generation.state().clock.page());
}

/// A reader beside a writer, as `ptp_vmclock.c` reads: with an even count, both counters are of one change.
#[test]
fn a_reader_that_keeps_to_the_sequence_count_sees_no_half_change() {
    const READS: usize = 10_000;
    let (ram, (line, _event)) = (ram(), line());
    let mut generation = Generation::attach(ram.clone(), PLACE, line).unwrap();
    let reader = std::thread::spawn(move || {
        let at = |offset: usize| GuestAddress(PLACE.clock + offset as u64);
        let count = || ram.load::<u32>(at(offset::SEQ_COUNT), Ordering::Acquire).unwrap();
        let field = |offset| ram.load::<u64>(at(offset), Ordering::Relaxed).unwrap();
        let (mut last, mut reads) = (0, 0);
        while reads < READS {
            let before = count();
            let (marker, generation) = (field(offset::DISRUPTION_MARKER), field(offset::GENERATION_COUNTER));
            fence(Ordering::Acquire);
            // Reads between changes would all be alike.
            if before.is_multiple_of(2) && before == count() && before != last {
                assert_eq!((marker, u64::from(before)), (generation, generation * 2));
                (last, reads) = (before, reads + 1);
            }
        }
    });
    while !reader.is_finished() {
        generation.renew().unwrap();
    }
    reader.join().unwrap();
}

#[test]
fn damaged_states_are_refused() {
    let good = Generation::attach(ram(), PLACE, line().0).unwrap().state();
    let restore = |state| Generation::restore(&state, ram(), line().0);
    let version = restore(GenerationState { version: 2, ..good });
    assert!(matches!(version, Err(GenerationError::Version { found: 2 })));
    for place in [Place { id: 0x3004, ..PLACE }, Place { clock: 0x2800, ..PLACE }] {
        let unaligned = restore(GenerationState { place, ..good });
        assert!(matches!(unaligned, Err(GenerationError::Unaligned { .. })));
        assert!(Generation::attach(ram(), place, line().0).is_err());
    }
    for place in [Place { id: 1 << 20, ..PLACE }, Place { clock: 1 << 20, ..PLACE }] {
        let mut outside = restore(GenerationState { place, ..good }).unwrap();
        assert!(matches!(outside.renew(), Err(GenerationError::Memory(_))));
    }
}
