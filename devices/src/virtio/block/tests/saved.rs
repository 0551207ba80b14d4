//! A device that is saved, and goes on on the same disk or on another one.

use super::*;
use crate::virtio::mmio::MmioTransportState;

/// Pauses the guest's device and saves it.
fn save(driver: &mut TestDriver<Block>) -> (MmioTransportState, BlockState) {
    driver.transport.pause();
    (driver.transport.save(), lock(&driver.device).save())
}

fn restore(state: &BlockState) -> Result<Block, BlockError> {
    Block::restore(state, BlockMetrics::default())
}

fn restore_at(state: &BlockState, disk: &NamedTempFile) -> Result<Block, BlockError> {
    Block::restore_at(state, disk.path(), BlockMetrics::default())
}

#[test]
fn a_saved_device_goes_on_elsewhere_and_keeps_its_serial_number() {
    let (disk, other) = (image(&pattern(1, 64 * 512)), image(&pattern(2, 64 * 512)));
    let mut driver = driver(&disk, IoEngine::Sync);
    request(&mut driver, IN, 0, &[(BUFFER, 512)]);
    // Once the device does not look for more, it sees only what it is notified of.
    driver.settle();
    offer(&mut driver, 0, IN, 1, &[(BUFFER, 512)]);
    driver.transport.pause();
    let (transport, mut state) = (driver.transport.save(), lock(&driver.device).save());
    let id = state.device_id;
    let clone = Block::restore_at(&state, other.path(), BlockMetrics::default()).unwrap();
    assert_eq!(clone.path(), other.path());
    let mut moved = driver.moved_to(clone, &transport);
    moved.transport.resume().unwrap();
    moved.take_used();
    assert_eq!(moved.bytes(BUFFER, 512), pattern(2, 64 * 512)[512..1024]);
    request(&mut moved, GET_ID, 0, &[(BUFFER, 20)]);
    assert_eq!(moved.bytes(BUFFER, 20), id);
    state.version = 7;
    let refused = Block::restore(&state, BlockMetrics::default());
    assert!(matches!(refused, Err(BlockError::Version { found: 7 })));
}

#[test]
fn what_a_device_was_made_from_is_saved() {
    for engine in ENGINES {
        let disk = blank();
        let bucket = TokenBucketConfig { size: 100, one_time_burst: 0, refill_time_ms: 3_600_000 };
        let limiter = RateLimiterConfig { bandwidth: None, ops: Some(bucket) };
        let made = BlockConfig { read_only: true, limiter, ..config(disk.path(), engine) };
        let mut driver = driver_of(&made);
        let (_, state) = save(&mut driver);
        drop(driver);
        let mut restored = restore(&state).unwrap();
        assert_eq!(restored.save(), state);
        assert_eq!((state.read_only, state.cache, state.engine), (true, CacheType::Writeback, engine));
        assert_eq!((state.sectors, &*state.path), (SECTORS, disk.path()));
    }
}

#[test]
fn a_disk_of_another_size_is_refused_with_both_sizes() {
    let (disk, other) = (blank(), image(&vec![0; 65 * 512]));
    let mut driver = driver(&disk, IoEngine::Sync);
    let (_, state) = save(&mut driver);
    drop(driver);
    let error = restore_at(&state, &other).unwrap_err().to_string();
    let place = other.path().display();
    let text = format!("the file behind the drive, {place}, is 33280 bytes and was 32768: restore with");
    assert!(error.starts_with(&text), "{error}");
    disk.as_file().set_len(63 * 512).unwrap();
    let error = restore(&state).unwrap_err();
    assert!(matches!(error, BlockError::SizeChanged { actual_bytes: 32_256, saved_bytes: 32_768, .. }));
    disk.as_file().set_len(SECTORS * 512).unwrap();
    assert!(restore(&state).is_ok(), "one that was refused is not locked any more");
}

#[test]
fn a_restored_disk_is_locked_as_a_new_one() {
    let (disk, copy) = (blank(), blank());
    let mut driver = driver(&disk, IoEngine::Sync);
    let (_, state) = save(&mut driver);
    assert!(
        matches!(restore(&state), Err(BlockError::Disk(DiskError::InUse { .. }))),
        "the first one has it"
    );
    let clone = restore_at(&state, &copy).unwrap();
    assert!(matches!(restore_at(&state, &copy), Err(BlockError::Disk(DiskError::InUse { .. }))));
    drop((driver, clone));
    let read_only = BlockState { read_only: true, ..state.clone() };
    let _readers = [restore(&read_only).unwrap(), restore(&read_only).unwrap()];
    assert!(matches!(restore(&state), Err(BlockError::Disk(DiskError::InUse { .. }))));
    let missing = Block::restore_at(&state, Path::new("/missing"), BlockMetrics::default());
    assert!(matches!(missing, Err(BlockError::Disk(DiskError::Open { .. }))));
}

#[test]
fn a_disk_that_was_changed_in_the_pause_is_announced_by_the_restored_device() {
    let (disk, new) = (blank(), image(&pattern(4, 100 * 512)));
    let mut driver = driver(&disk, IoEngine::Sync);
    driver.settle();
    driver.transport.pause();
    driver.write(register::VIRTIO_MMIO_INTERRUPT_ACK, 3);
    lock(&driver.device).update_path(new.path()).unwrap();
    let generation = driver.read(register::VIRTIO_MMIO_CONFIG_GENERATION);
    let (transport, state) = save(&mut driver);
    let copy = image(&pattern(4, 100 * 512));
    let mut moved = driver.moved_to(restore_at(&state, &copy).unwrap(), &transport);
    assert_eq!(moved.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    moved.transport.resume().unwrap();
    assert_eq!(moved.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    assert!(moved.line.read().is_ok());
    assert_eq!(moved.read(0x100), 100);
    assert_eq!(moved.read(register::VIRTIO_MMIO_CONFIG_GENERATION), generation);
}

#[test]
fn a_throttled_device_is_throttled_where_it_goes_on() {
    let hour = |size| RateLimiterConfig {
        bandwidth: None,
        ops: Some(TokenBucketConfig { size, one_time_burst: 0, refill_time_ms: 3_600_000 }),
    };
    for engine in ENGINES {
        let (disk, copy) = (blank(), blank());
        let mut driver = driver_of(&BlockConfig { limiter: hour(1), ..config(disk.path(), engine) });
        offer(&mut driver, 0, IN, 0, &[(BUFFER, 512)]);
        offer(&mut driver, 1, IN, 0, &[(BUFFER, 512)]);
        driver.notify();
        driver.take_used();
        driver.settle();
        let (transport, state) = save(&mut driver);
        let [queue] = transport.queues[..] else { panic!("a block device has one queue") };
        assert_eq!((queue.next_avail, queue.next_used), (1, 1), "the request that waits is not in flight");
        let mut moved = driver.moved_to(restore_at(&state, &copy).unwrap(), &transport);
        moved.transport.resume().unwrap();
        moved.settle();
        assert_eq!(moved.used_waiting(), 0, "the limit was saved too");
        lock(&moved.device).update_rate_limiter(&hour(0)).unwrap();
        assert_eq!(moved.take_used().1, 513);
    }
}
