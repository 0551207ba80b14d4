use std::sync::Mutex;

use super::*;

/// Notes what it is told, and what the first byte of the range was then.
struct Noter {
    ram: GuestRam,
    notes: Mutex<Vec<(&'static str, PageRange, u8)>>,
}

impl Noter {
    fn watching(ram: &GuestRam) -> Arc<Self> {
        let noter = Arc::new(Self { ram: ram.clone(), notes: Mutex::default() });
        let weak: Weak<Self> = Arc::downgrade(&noter);
        ram.watch_discards(weak).unwrap();
        noter
    }

    fn note(&self, what: &'static str, range: PageRange) {
        let first = self.ram.read_obj(GuestAddress(range.start.offset())).unwrap();
        self.notes.lock().unwrap().push((what, range, first));
        // No lock of the RAM is held during the call, or this would wait for ever.
        assert!(!self.ram.mapping.watchers.current().is_empty());
    }

    fn notes(&self) -> Vec<(&'static str, PageRange, u8)> {
        std::mem::take(&mut self.notes.lock().unwrap())
    }
}

impl DiscardWatcher for Noter {
    fn before_discard(&self, range: PageRange) {
        self.note("before", range);
    }

    fn after_discard(&self, range: PageRange) {
        self.note("after", range);
    }
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

#[test]
fn a_watcher_is_told_before_the_content_is_gone_and_after_it() {
    for backing in [ANONYMOUS, MEMFD, Backing::MemfdPrivate] {
        let ram = GuestRam::new(&[range(0, 2 * MIB)], backing).unwrap();
        let noter = Noter::watching(&ram);
        ram.write_obj(9_u8, GuestAddress(5 * 4096)).unwrap();
        // Through another clone: all share the watchers.
        ram.clone().discard(pages(5, 2)).unwrap();
        assert_eq!(noter.notes(), [("before", pages(5, 2), 9), ("after", pages(5, 2), 0)], "{backing:?}");
    }
}

#[test]
fn a_watch_ends_with_its_watcher_and_there_are_few_at_a_time() {
    let ram = GuestRam::new(&[range(0, 2 * MIB)], ANONYMOUS).unwrap();
    let mut noters: Vec<_> = (0..4).map(|_| Noter::watching(&ram)).collect();
    let fifth: Weak<Noter> = Arc::downgrade(&noters[0]);
    let error = ram.watch_discards(fifth).unwrap_err();
    assert!(error.to_string().contains("drop one of them first"), "{error}");
    let gone = noters.pop().unwrap();
    ram.discard(pages(1, 1)).unwrap();
    assert!(noters.iter().chain([&gone]).all(|noter| noter.notes().len() == 2));
    drop(gone);
    let new = Noter::watching(&ram);
    ram.discard(pages(1, 1)).unwrap();
    assert_eq!(new.notes().len(), 2);
}

#[test]
fn pages_that_are_not_there_are_refused_and_told_to_nobody() {
    let ram = GuestRam::new(&[range(0, 2 * MIB)], ANONYMOUS).unwrap();
    let noter = Noter::watching(&ram);
    for outside in [pages(511, 2), pages(u64::MAX, 1), pages(1, u64::MAX)] {
        let error = ram.discard(outside).unwrap_err();
        assert!(error.to_string().contains("name pages below 512"), "{error}");
    }
    ram.discard(pages(7, 0)).unwrap();
    assert_eq!(noter.notes(), []);
}

#[test]
fn a_private_mapping_shows_the_memfd_again_once_its_own_page_is_gone() {
    let ram = GuestRam::new(&[range(0, 2 * MIB)], Backing::MemfdPrivate).unwrap();
    ram.write_cached(pages(3, 1), &[7; 4096]).unwrap();
    ram.write_obj(9_u8, GuestAddress(3 * 4096)).unwrap();
    ram.discard(pages(3, 1)).unwrap();
    assert_eq!(ram.read_obj::<u8>(GuestAddress(3 * 4096)).unwrap(), 7, "as the documentation warns");
}
