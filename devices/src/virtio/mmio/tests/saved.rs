//! A device that is saved in the middle of something goes on with it.

use super::*;

/// The device saved and brought back, for the same guest.
fn moved(mut driver: TestDriver<Entropy>) -> TestDriver<Entropy> {
    driver.transport.pause();
    let state = driver.transport.save();
    let moved = driver.moved_to(entropy(), &state);
    assert_eq!(moved.transport.save(), state);
    moved
}

#[test]
fn a_driver_that_is_just_starting_goes_on_with_that() {
    let mut driver = driver();
    driver.negotiate(feature::VERSION_1 | feature::EVENT_IDX);
    driver.write(register::VIRTIO_MMIO_QUEUE_DESC_LOW, u32::try_from(DESC_TABLE).unwrap());
    let mut driver = moved(driver);
    driver.transport.resume().unwrap();
    driver.write(register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, u32::try_from(AVAIL_RING).unwrap());
    let mut driver = moved(driver);
    driver.transport.resume().unwrap();
    driver.write(register::VIRTIO_MMIO_QUEUE_USED_LOW, u32::try_from(USED_RING).unwrap());
    driver.write(register::VIRTIO_MMIO_QUEUE_READY, 1);
    driver.write(register::VIRTIO_MMIO_STATUS, STATUS_READY);
    use_device(&mut driver);
}

#[test]
fn a_register_that_is_selected_stays_so() {
    let mut driver = driver();
    driver.write(register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    driver.write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    driver.write(register::VIRTIO_MMIO_QUEUE_SEL, 7);
    let mut driver = moved(driver);
    assert_eq!(driver.read(register::VIRTIO_MMIO_DEVICE_FEATURES), 1, "VERSION_1 is bit 32");
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "there is no such queue");
    driver.write(register::VIRTIO_MMIO_DRIVER_FEATURES, 1);
    assert_eq!(driver.transport.save().driver_features, feature::VERSION_1);
}

#[test]
fn features_that_were_never_offered_are_refused_when_they_are_to_be_agreed_on() {
    let mut driver = driver();
    driver.write(register::VIRTIO_MMIO_DRIVER_FEATURES, 1);
    let mut driver = moved(driver);
    driver.write(register::VIRTIO_MMIO_STATUS, 3);
    driver.write(register::VIRTIO_MMIO_STATUS, 11);
    assert_eq!(driver.status(), 3);
    driver.init(0, 8);
    use_device(&mut driver);
}

#[test]
fn an_interrupt_that_was_not_acknowledged_is_raised_again() {
    let mut driver = driver();
    driver.init(0, 8);
    use_device(&mut driver);
    driver.settle();
    let mut driver = moved(driver);
    assert!(driver.line.read().is_err(), "not before the guest runs");
    driver.transport.resume().unwrap();
    assert_eq!(driver.line.read().unwrap(), 1);
    assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.write(register::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    driver.settle();
    let mut driver = moved(driver);
    driver.transport.resume().unwrap();
    assert!(driver.line.read().is_err());
    use_device(&mut driver);
}

#[test]
fn a_device_that_has_stopped_stays_so_until_it_is_reset() {
    let mut driver = driver();
    driver.init(0, 8);
    driver.offer(&[(DATA, 16, false)]);
    driver.expect_device_stops();
    let mut driver = moved(driver);
    driver.transport.resume().unwrap();
    assert!(driver.line.read().is_ok(), "the driver is told once more");
    assert_eq!(driver.status(), STATUS_READY | STATUS_NEEDS_RESET);
    driver.init(0, 8);
    use_device(&mut driver);
}

#[test]
fn a_device_that_could_not_start_says_so_where_it_goes_on() {
    let mut driver = driver();
    driver.negotiate(feature::VERSION_1);
    driver.set_up_queue(8, [RAM_BYTES, AVAIL_RING, USED_RING]);
    driver.write(register::VIRTIO_MMIO_STATUS, STATUS_READY);
    assert_eq!(driver.status(), STATUS_READY | STATUS_NEEDS_RESET);
    let mut driver = moved(driver);
    driver.transport.resume().unwrap();
    assert!(driver.line.read().is_ok(), "the edge may have been lost on the way to the guest");
    assert_eq!(driver.status(), STATUS_READY | STATUS_NEEDS_RESET);
    driver.init(0, 8);
    use_device(&mut driver);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a driver did before: every register reads the same, and a reset brings the device back.
    #[test]
    fn any_device_is_the_same_afterwards(
        accesses in prop::collection::vec((offset(), value()), 0..200)
    ) {
        let mut driver = driver();
        for (offset, value) in accesses {
            driver.transport.write(offset, &value.to_le_bytes()[..4]);
        }
        driver.settle();
        driver.transport.pause();
        let registers = |driver: &mut TestDriver<Entropy>| {
            (0..0x100).step_by(4).map(|offset| driver.read(offset)).collect::<Vec<_>>()
        };
        let before = registers(&mut driver);
        let mut driver = moved(driver);
        prop_assert_eq!(registers(&mut driver), before);
        drop(driver.transport.resume());
        driver.init(0, 8);
        use_device(&mut driver);
    }
}
