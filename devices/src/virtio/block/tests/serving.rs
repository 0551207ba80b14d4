//! How requests are served: by how many events and interrupts, and whose turn it is.

use vm_memory::{Bytes, GuestAddress};

use super::*;

/// Asks the device not to interrupt, or to do so again (virtio 1.2, 2.7.6).
fn set_no_interrupt(driver: &TestDriver<Block>, no_interrupt: bool) {
    driver.ram.write_obj(u16::from(no_interrupt), GuestAddress(AVAIL_RING)).unwrap();
}

/// Makes a request, and says whether it brought an interrupt.
fn interrupts(driver: &mut TestDriver<Block>) -> bool {
    assert_eq!(request(driver, IN, 0, &[(BUFFER, 512)]), (OK, 513));
    driver.settle();
    driver.line.read().is_ok()
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    for engine in ENGINES {
        let disk = blank();
        let mut driver =
            TestDriver::new(Block::new(&config(disk.path(), engine), BlockMetrics::default()).unwrap());
        driver.init(0, 64);
        for no_interrupt in [true, false, true] {
            set_no_interrupt(&driver, no_interrupt);
            assert_eq!(interrupts(&mut driver), !no_interrupt, "{engine:?}");
        }
        assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 1, "of the one in the middle");
    }
}

#[test]
fn the_flag_means_nothing_where_an_index_was_agreed_on() {
    let mut driver = driver(&blank(), IoEngine::Sync);
    set_no_interrupt(&driver, true);
    assert!(interrupts(&mut driver), "the index asks for one after the first request");
    assert!(!interrupts(&mut driver), "and for none after the second");
}

#[test]
fn what_ends_soon_is_answered_without_an_event() {
    let disk = blank();
    let mut driver = driver(&disk, IoEngine::Async);
    offer(&mut driver, 0, IN, 0, &[(BUFFER, 512)]);
    let device = driver.device.clone();
    // The loop cannot look at its events while this is locked.
    let mut device = lock(&device);
    wait_for("an answer", || {
        device.serve_now();
        (driver.used_waiting() == 1).then_some(())
    });
}

#[test]
fn an_operation_that_ends_while_it_is_submitted_is_not_lost() {
    let disk = blank();
    let mut driver = driver(&disk, IoEngine::Async);
    for _ in 0..50 {
        // Flushes are done by threads of the kernel's, which race with the submission's end.
        let slots = 0..16;
        slots.clone().for_each(|slot| _ = offer(&mut driver, slot, FLUSH, 0, &[]));
        driver.notify();
        slots.for_each(|_| _ = driver.take_used());
    }
    assert_eq!(metrics(&driver).flush_count.get(), 50 * 16);
}

const QUEUE_SIZE: u16 = 16;

/// A disk of `count` requests, each of which makes the next one: the guest reads the first half of what is at 1024 n
/// over its available ring, which so has one chain more, and the second half over that chain's header.
fn endless_reads(count: u16) -> NamedTempFile {
    let content = (1..=count).flat_map(|next| {
        let offered = if next < count { next + 1 } else { next };
        let avail_ring = [&[0, 0][..], &offered.to_le_bytes(), &[0; 508]].concat();
        [avail_ring, header(IN, u64::from(next) * 2), vec![0; 496]].concat()
    });
    image(&content.collect::<Vec<u8>>())
}

#[test]
fn a_driver_that_always_has_one_more_does_not_keep_the_thread() {
    let count = 5 * QUEUE_SIZE;
    for engine in ENGINES {
        let disk = endless_reads(count);
        let mut driver =
            TestDriver::new(Block::new(&config(disk.path(), engine), BlockMetrics::default()).unwrap());
        driver.init(0, QUEUE_SIZE);
        // The device's start is an event too.
        driver.settle();
        let (metrics, device) = (metrics(&driver), driver.device.clone());
        offer(&mut driver, 0, IN, 0, &[(AVAIL_RING, 512), (HEADER, 512)]);
        let mut turn = lock(&device);
        wait_for("an answer", || {
            turn.serve_now();
            (metrics.read_count.get() > 0).then_some(())
        });
        let served = metrics.read_count.get();
        assert!(served <= u64::from(QUEUE_SIZE), "{engine:?}: {served} in one turn");
        if engine == IoEngine::Sync {
            assert_eq!(served, u64::from(QUEUE_SIZE), "without an event");
        }
        drop(turn);
        // The driver notifies nobody: the device goes on by itself.
        wait_for("all answers", || (metrics.read_count.get() == u64::from(count)).then_some(()));
    }
}
