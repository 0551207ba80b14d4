//! Every corner of the kernel's interface that the engine counts on, on the kernel itself.

mod cached;
mod hugetlb;
pub(crate) mod machine;
mod moving;
mod placing;
mod poison;
mod protecting;
mod registering;
pub(crate) mod swap;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::page::{PageIndex, PageRange, PageSize};
use crate::ram::{Backing, GuestRam, RamRange, Sharing};
use crate::staging::Staging;

const ANONYMOUS: Backing = Backing::Anonymous { transparent_huge_pages: false };
const MEMFD: Backing = Backing::Memfd { transparent_huge_pages: false };
const MISSING: Modes = Modes { missing: true, write_protect: false, minor: false };
const MISSING_WP: Modes = Modes { missing: true, write_protect: true, minor: false };
/// How long anything that must happen may take.
const BUDGET: Duration = Duration::from_secs(2);

fn page(index: u64) -> PageRange {
    PageIndex(index).alone()
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

fn bytes(value: u8, count: u64) -> Vec<u8> {
    vec![value; usize::try_from(PageRange { start: PageIndex(0), count }.bytes()).unwrap()]
}

/// Registered memory, and the events of it that were read and not looked at yet.
struct Memory {
    registered: Registered,
    events: RefCell<VecDeque<Event>>,
}

impl Deref for Memory {
    type Target = Registered;

    fn deref(&self) -> &Registered {
        &self.registered
    }
}

impl From<Registered> for Memory {
    fn from(registered: Registered) -> Self {
        Self { registered, events: RefCell::default() }
    }
}

fn ram_of(backing: Backing, mib: u64) -> GuestRam {
    GuestRam::new(&[RamRange { gpa: GuestAddress(0), size_bytes: mib << 20 }], backing).unwrap()
}

fn registered(backing: Backing, mib: u64, modes: Modes) -> Memory {
    register(ram_of(backing, mib), modes)
}

fn register(ram: GuestRam, modes: Modes) -> Memory {
    let features = probe().unwrap().features;
    // Asynchronous write-protection would take the faults away that these tests wait for.
    let asynchronous = Features::NONE.with(Feature::WRITE_PROTECT_ASYNC);
    Registered::new(open(features.without(asynchronous)).unwrap(), ram, modes).unwrap().into()
}

/// Touches a page on a thread of its own; the receiver gives what was read before the write, if there is one.
fn touch(registered: &Registered, index: u64, write: Option<u8>) -> Receiver<u8> {
    let (sender, receiver) = channel();
    let ram = registered.ram().clone();
    thread::spawn(move || {
        let address = GuestAddress(PageIndex(index).offset());
        let value = match write {
            Some(value) => {
                ram.write_obj(value, address).unwrap();
                value
            }
            None => ram.read_obj::<u8>(address).unwrap(),
        };
        // The test may have ended.
        let _ = sender.send(value);
    });
    receiver
}

fn next_event(memory: &Memory) -> Event {
    let mut buffer = EventBuffer::default();
    let deadline = Instant::now() + BUDGET;
    loop {
        let mut events = memory.events.borrow_mut();
        if let Some(event) = events.pop_front() {
            return event;
        }
        memory.read_events(&mut buffer, &mut |event| events.push_back(event)).unwrap();
        assert!(Instant::now() < deadline, "no event within {BUDGET:?}");
        thread::yield_now();
    }
}

fn next_fault(registered: &Memory) -> Fault {
    match next_event(registered) {
        Event::Fault(fault) => fault,
        other => panic!("a fault was expected, not {other:?}"),
    }
}

fn content(registered: &Registered, index: u64) -> u8 {
    registered.ram().read_obj(GuestAddress(PageIndex(index).offset())).unwrap()
}

fn done(count: u64) -> Placed {
    Placed { pages: count, stop: None }
}

fn stopped(count: u64, stop: Stop) -> Placed {
    Placed { pages: count, stop: Some(stop) }
}
