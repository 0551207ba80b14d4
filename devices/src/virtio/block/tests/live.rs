//! What happens to a device while it works: it is paused, throttled, and its disk is changed.

use super::*;

#[test]
fn a_pause_with_requests_in_flight_finishes_them_and_nothing_is_lost() {
    for engine in ENGINES {
        let content = pattern(11, 64 * 512);
        let disk = image(&content);
        let mut driver = driver(&disk, engine);
        for _ in 0..50 {
            driver.put(BUFFER, &[0; 16 * 512]);
            for slot in 0..16 {
                offer(&mut driver, slot, IN, slot, &[(BUFFER + slot * 512, 512)]);
            }
            driver.notify();
            driver.transport.pause();
            let state = driver.transport.save();
            let [queue] = state.queues[..] else { panic!("a block device has one queue") };
            assert_eq!(queue.next_avail, queue.next_used, "nothing is in flight in a pause");
            let done = driver.used_waiting();
            driver.settle();
            assert_eq!(driver.used_waiting(), done, "nothing happens in a pause");
            driver.transport.resume().unwrap();
            (0..16).for_each(|_| _ = driver.take_used());
            assert_eq!(driver.bytes(BUFFER, 16 * 512), content[..16 * 512]);
        }
    }
}

#[test]
fn the_disk_can_be_changed_under_a_running_guest() {
    for engine in ENGINES {
        let disk = blank();
        let mut driver = driver(&disk, engine);
        request(&mut driver, IN, 0, &[(BUFFER, 512)]);
        driver.settle();
        driver.write(register::VIRTIO_MMIO_INTERRUPT_ACK, 3);
        let generation = driver.read(register::VIRTIO_MMIO_CONFIG_GENERATION);
        let new = image(&pattern(4, 100 * 512));
        lock(&driver.device).update_path(new.path()).unwrap();
        assert_eq!(lock(&driver.device).path(), new.path());
        assert_eq!(driver.read(0x100), 100);
        assert_ne!(driver.read(register::VIRTIO_MMIO_CONFIG_GENERATION), generation);
        assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
        assert_eq!(request(&mut driver, IN, 99, &[(BUFFER, 512)]).0, OK);
        assert_eq!(driver.bytes(BUFFER, 512), pattern(4, 100 * 512)[99 * 512..]);
        let free_again = Block::new(&config(disk.path(), engine), BlockMetrics::default());
        assert!(free_again.is_ok(), "the old disk is not locked any more");
        // The same file, larger: the lock is the device's own and does not stand in the way.
        new.as_file().set_len(120 * 512).unwrap();
        lock(&driver.device).update_path(new.path()).unwrap();
        assert_eq!(driver.read(0x100), 120);
        assert!(Block::new(&config(new.path(), engine), BlockMetrics::default()).is_err(), "still locked");
        assert_eq!(metrics(&driver).update_count.get(), 2);
    }
}

#[test]
fn a_disk_that_changes_in_a_pause_is_announced_when_the_guest_goes_on() {
    let (disk, new) = (blank(), image(&pattern(4, 100 * 512)));
    let mut driver = driver(&disk, IoEngine::Sync);
    driver.settle();
    driver.transport.pause();
    driver.write(register::VIRTIO_MMIO_INTERRUPT_ACK, 3);
    lock(&driver.device).update_path(new.path()).unwrap();
    assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 0, "nobody is there to be told");
    driver.transport.resume().unwrap();
    assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    assert_eq!(driver.read(0x100), 100);
}

#[test]
fn a_disk_that_cannot_be_used_leaves_the_old_one() {
    let (disk, taken) = (blank(), blank());
    let mut driver = driver(&disk, IoEngine::Sync);
    let _other = Block::new(&config(taken.path(), IoEngine::Sync), BlockMetrics::default()).unwrap();
    let in_use = lock(&driver.device).update_path(taken.path());
    assert!(matches!(in_use, Err(BlockError::Disk(DiskError::InUse { .. }))), "{in_use:?}");
    let missing = lock(&driver.device).update_path(Path::new("/missing"));
    assert!(matches!(missing, Err(BlockError::Disk(DiskError::Open { .. }))), "{missing:?}");
    assert_eq!(metrics(&driver).update_fails.get(), 2);
    assert_eq!(request(&mut driver, IN, 0, &[(BUFFER, 512)]).0, OK);
}

#[test]
fn changing_the_disk_with_requests_in_flight_loses_none() {
    for engine in ENGINES {
        let disks = [image(&pattern(1, 64 * 512)), image(&pattern(2, 64 * 512))];
        let mut driver = driver(&disks[0], engine);
        for round in 0..20 {
            for slot in 0..16 {
                offer(&mut driver, slot, IN, slot, &[(BUFFER + slot * 512, 512)]);
            }
            driver.notify();
            lock(&driver.device).update_path(disks[(round + 1) % 2].path()).unwrap();
            for _ in 0..16 {
                driver.take_used();
            }
            assert_eq!(driver.bytes(STATUS, 16), [OK; 16]);
            for slot in 0..16 {
                let (read, start) =
                    (driver.bytes(BUFFER + slot * 512, 512), usize::try_from(slot * 512).unwrap());
                let old_or_new = [1, 2].map(|seed| pattern(seed, 64 * 512)[start..start + 512] == read);
                assert_ne!(old_or_new, [false, false], "no mixture, and nothing else");
            }
        }
    }
}

/// A device with `count` requests of a sector each in flight, which end when 512 bytes each go into the pipe.
fn in_flight(count: u64) -> (TestDriver<Block>, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let mut driver = TestDriver::new(Block::on_pipe(reader, SECTORS, BlockMetrics::default()));
    driver.init(feature::EVENT_IDX | feature::INDIRECT_DESC, 256);
    for slot in 0..count {
        // One after the other: the pipe has an order, and the requests are to have the same.
        offer(&mut driver, slot % 16, IN, 0, &[(BUFFER + slot * 512, 512)]);
        driver.notify();
        driver.settle();
    }
    driver.settle();
    assert_eq!(driver.used_waiting(), 0);
    (driver, writer)
}

#[test]
fn a_pause_waits_for_what_is_in_flight() {
    let (mut driver, mut pipe) = in_flight(3);
    let feeder = std::thread::spawn(move || {
        // In pieces: what the kernel did only a part of is gone on with.
        for piece in pattern(6, 3 * 512).chunks(100) {
            pipe.write_all(piece).unwrap();
            std::thread::yield_now();
        }
        pipe
    });
    driver.transport.pause();
    let state = driver.transport.save();
    assert_eq!((state.queues[0].next_avail, state.queues[0].next_used), (3, 3));
    assert_eq!(driver.used_waiting(), 3);
    assert_eq!(driver.bytes(STATUS, 3), [OK; 3]);
    let (mut read, mut sent) = (driver.bytes(BUFFER, 3 * 512), pattern(6, 3 * 512));
    // Requests that wait for the same pipe share its pieces in an order of the kernel's own.
    read.sort_unstable();
    sent.sort_unstable();
    assert_eq!(read, sent);
    drop(feeder.join().unwrap());
}

#[test]
fn a_change_of_the_disk_waits_for_what_is_in_flight_on_the_old_one() {
    let (mut driver, mut pipe) = in_flight(1);
    let new = image(&pattern(8, 64 * 512));
    let feeder = std::thread::spawn(move || {
        for byte in pattern(6, 512) {
            pipe.write_all(&[byte]).unwrap();
            std::thread::yield_now();
        }
    });
    lock(&driver.device).update_path(new.path()).unwrap();
    assert_eq!(driver.used_waiting(), 1, "answered before the old disk was closed");
    feeder.join().unwrap();
    driver.take_used();
    assert_eq!(driver.bytes(BUFFER, 512), pattern(6, 512), "from the old disk");
    assert_eq!(request(&mut driver, IN, 0, &[(BUFFER, 512)]), (OK, 513));
    assert_eq!(driver.bytes(BUFFER, 512), pattern(8, 512), "from the new disk");
}

#[test]
fn requests_that_end_later_are_answered_by_an_event() {
    let (mut driver, mut pipe) = in_flight(2);
    pipe.write_all(&pattern(6, 512)).unwrap();
    driver.take_used();
    driver.settle();
    assert_eq!(driver.used_waiting(), 0);
    pipe.write_all(&pattern(6, 512)).unwrap();
    driver.take_used();
}

#[test]
fn a_device_that_goes_away_takes_what_is_in_flight_along() {
    let (driver, pipe) = in_flight(2);
    // The disk ends, and so do the reads: dropping the device waits for that.
    drop(pipe);
    drop(driver);
}

#[test]
fn a_full_engine_holds_requests_back_and_goes_on() {
    let (mut driver, mut pipe) = in_flight(0);
    let count = 200_u16;
    let table = BUFFER + 0x10_0000;
    driver.put(HEADER, &header(IN, 0));
    for slot in 0..count {
        let entry = table + u64::from(slot) * 48;
        let (data, status) = (BUFFER + u64::from(slot) * 512, DATA + 0x200 + u64::from(slot));
        let chain = [(HEADER, 16, NEXT, 1), (data, 512, WRITE | NEXT, 2), (status, 1, WRITE, 0)];
        driver.put_descriptors(entry, 0, &chain);
        driver.put_descriptors(DESC_TABLE, slot, &[(entry, 48, INDIRECT, 0)]);
        driver.offer_head(slot);
    }
    driver.notify();
    driver.settle();
    assert_eq!(metrics(&driver).io_engine_throttled_events.get(), 1);
    assert_eq!(metrics(&driver).remaining_reqs_count.get(), 200 - 128);
    let feeder = std::thread::spawn(move || pipe.write_all(&vec![1; 200 * 512]).unwrap());
    for _ in 0..count {
        assert_eq!(driver.take_used().1, 513);
    }
    feeder.join().unwrap();
}

#[test]
fn the_limiter_counts_operations_and_bytes_and_lets_requests_go_on() {
    let bucket = |size| Some(TokenBucketConfig { size, one_time_burst: 0, refill_time_ms: 20 });
    for engine in ENGINES {
        for (bandwidth, ops) in [(bucket(1024), None), (None, bucket(2)), (bucket(100), bucket(100))] {
            let disk = blank();
            let limiter = RateLimiterConfig { bandwidth, ops };
            let mut driver = driver_of(&BlockConfig { limiter, ..config(disk.path(), engine) });
            for slot in 0..8 {
                offer(&mut driver, slot, IN, slot, &[(BUFFER, 512)]);
            }
            driver.notify();
            for _ in 0..8 {
                assert_eq!(driver.take_used().1, 513);
            }
            assert!(metrics(&driver).rate_limiter_throttled_events.get() > 0);
            assert!(metrics(&driver).rate_limiter_event_count.get() > 0);
            assert!(metrics(&driver).remaining_reqs_count.get() > 0);
        }
    }
}

#[test]
fn a_changed_limiter_lets_waiting_requests_go() {
    let hour = |size| RateLimiterConfig {
        bandwidth: None,
        ops: Some(TokenBucketConfig { size, one_time_burst: 0, refill_time_ms: 3_600_000 }),
    };
    let disk = blank();
    let mut driver = driver_of(&BlockConfig { limiter: hour(1), ..config(disk.path(), IoEngine::Sync) });
    offer(&mut driver, 0, IN, 0, &[(BUFFER, 512)]);
    offer(&mut driver, 1, IN, 0, &[(BUFFER, 512)]);
    driver.notify();
    driver.take_used();
    driver.settle();
    assert_eq!(driver.used_waiting(), 0);
    lock(&driver.device).update_rate_limiter(&hour(0)).unwrap();
    driver.take_used();
}
