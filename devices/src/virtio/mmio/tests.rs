use std::sync::mpsc::channel;
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::registers::VIRTIO_MMIO_QUEUE_NUM_MAX;
use super::*;
use crate::bus::BusDevice;
use crate::interrupt::IrqFd;
use crate::limiter::RateLimiterConfig;
use crate::metrics::EntropyMetrics;
use crate::virtio::rng::Entropy;
use crate::virtio::test_driver::*;

mod saved;

const RINGS: [u64; 3] = [DESC_TABLE, AVAIL_RING, USED_RING];

fn entropy() -> Entropy {
    Entropy::new(&RateLimiterConfig::default(), EntropyMetrics::default()).unwrap()
}

fn driver() -> TestDriver<Entropy> {
    TestDriver::new(entropy())
}

/// Asks for random bytes and checks that they come.
fn use_device(driver: &mut TestDriver<Entropy>) {
    driver.put(DATA, &[0; 64]);
    let head = driver.offer(&[(DATA, 64, true)]);
    driver.notify();
    assert_eq!(driver.take_used(), (head.into(), 64));
    assert_ne!(driver.bytes(DATA, 64), [0; 64]);
}

#[test]
fn it_says_what_it_is_and_works_after_the_usual_start() {
    let mut driver = driver();
    assert_eq!(driver.read(register::VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read(register::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read(register::VIRTIO_MMIO_DEVICE_ID), 4);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 256);
    driver.write(register::VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "there is one queue");
    for features in [0, feature::EVENT_IDX] {
        driver.init(features, 8);
        assert_eq!(driver.read(register::VIRTIO_MMIO_QUEUE_READY), 1);
        for _ in 0..20 {
            use_device(&mut driver);
        }
    }
}

#[test]
fn an_interrupt_has_its_cause_until_it_is_acknowledged() {
    let mut driver = driver();
    driver.init(0, 8);
    use_device(&mut driver);
    driver.settle();
    assert_eq!(driver.line.read().unwrap(), 1);
    assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.write(register::VIRTIO_MMIO_INTERRUPT_ACK, 2);
    assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.write(register::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn features_that_do_not_fit_are_not_agreed_on() {
    let mut driver = driver();
    driver.negotiate(0);
    assert_eq!(driver.status(), 3, "VERSION_1 is not optional");
    driver.negotiate(feature::VERSION_1);
    assert_eq!(driver.status(), 11);
    driver.write(register::VIRTIO_MMIO_STATUS, 0);
    driver.write(register::VIRTIO_MMIO_STATUS, 3);
    for (select, half) in [(1, 1), (0, 1 << 5), (2, 0)] {
        driver.write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
        driver.write(register::VIRTIO_MMIO_DRIVER_FEATURES, half);
    }
    driver.write(register::VIRTIO_MMIO_STATUS, 11);
    assert_eq!(driver.status(), 3, "bit 5 was not offered");
}

#[test]
fn queues_are_set_up_between_features_and_driver_ok_only() {
    let mut driver = driver();
    driver.set_up_queue(8, RINGS);
    assert_eq!(driver.read(register::VIRTIO_MMIO_QUEUE_READY), 0);
    driver.init(0, 8);
    driver.write(register::VIRTIO_MMIO_QUEUE_READY, 0);
    driver.write(register::VIRTIO_MMIO_QUEUE_DESC_LOW, 0);
    assert_eq!(driver.read(register::VIRTIO_MMIO_QUEUE_READY), 1);
    use_device(&mut driver);
}

#[test]
fn a_queue_that_cannot_be_stops_the_device_until_a_reset() {
    let [desc, avail, used] = RINGS;
    let cases: [(u32, [u64; 3]); 12] = [
        (0, RINGS),
        (3, RINGS),
        (512, RINGS),
        (0x1_0008, RINGS),
        (8, [desc + 8, avail, used]),
        (8, [desc, avail + 1, used]),
        (8, [desc, avail, used + 2]),
        (8, [RAM_BYTES, avail, used]),
        (8, [desc, RAM_BYTES - 2, used]),
        (8, [desc, avail, RAM_BYTES - 4]),
        (8, [0xffff_ffff_ffff_fff0, avail, used]),
        (8, [desc, avail, 0xffff_ffff_ffff_fffc]),
    ];
    for (size, rings) in cases {
        let mut driver = driver();
        driver.negotiate(feature::VERSION_1);
        driver.set_up_queue(size, rings);
        driver.write(register::VIRTIO_MMIO_STATUS, STATUS_READY);
        assert_eq!(driver.status(), STATUS_READY | STATUS_NEEDS_RESET, "{size} {rings:x?}");
        assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
        driver.notify();
        driver.settle();
        assert_eq!(lock(&driver.device).device_errors().get(), 1);
        assert_eq!(lock(&driver.device).activate_fails().get(), 1);
        driver.init(0, 8);
        use_device(&mut driver);
    }
}

#[test]
fn a_driver_that_is_ready_without_queues_stops_the_device() {
    let mut driver = driver();
    driver.negotiate(feature::VERSION_1);
    driver.write(register::VIRTIO_MMIO_STATUS, STATUS_READY);
    assert_eq!(driver.status(), STATUS_READY | STATUS_NEEDS_RESET);
    driver.init(0, 8);
    use_device(&mut driver);
}

#[test]
fn accesses_of_the_wrong_kind_read_zero_and_change_nothing() {
    let mut driver = driver();
    driver.init(0, 8);
    for (offset, length) in
        [(0, 1), (0, 2), (0, 8), (2, 4), (0x38, 4), (0xf0, 4), (0x100, 4), (0xffc, 4), (0x70, 3)]
    {
        let mut data = vec![0xff; length];
        driver.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; length], "{length} at {offset:#x}");
        driver.transport.write(offset, &vec![0; length]);
    }
    assert_eq!(driver.read(register::VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    driver.write(register::VIRTIO_MMIO_QUEUE_NOTIFY, 7);
    use_device(&mut driver);
}

#[test]
fn a_paused_device_gives_its_queues_back_and_goes_on_with_them() {
    let mut driver = driver();
    driver.init(feature::EVENT_IDX, 8);
    use_device(&mut driver);
    driver.transport.pause();
    driver.transport.pause();
    let state = driver.transport.save();
    assert!(state.running);
    assert_eq!((state.queues[0].next_avail, state.queues[0].next_used), (1, 1));
    driver.offer(&[(DATA, 16, true)]);
    driver.notify();
    driver.settle();
    assert_eq!(driver.used_waiting(), 0, "nothing happens in a pause");
    driver.transport.resume().unwrap();
    assert_eq!(driver.take_used().1, 16, "what was offered meanwhile is seen");
    driver.transport.resume().unwrap();
    use_device(&mut driver);
}

#[test]
fn a_saved_device_goes_on_elsewhere() {
    let mut driver = driver();
    driver.init(feature::EVENT_IDX, 8);
    for _ in 0..11 {
        use_device(&mut driver);
    }
    driver.offer(&[(DATA, 16, true)]);
    driver.transport.pause();
    let state = driver.transport.save();
    let mut moved = driver.moved_to(entropy(), &state);
    assert_eq!(moved.status(), STATUS_READY);
    assert_eq!(moved.transport.save(), state);
    moved.transport.resume().unwrap();
    assert_eq!(moved.take_used().1, 16);
    use_device(&mut moved);
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let mut driver = driver();
    driver.init(0, 8);
    driver.transport.pause();
    let state = driver.transport.save();
    let refused = |state: MmioTransportState| {
        let line = Arc::new(IrqFd(EventFd::new(EFD_NONBLOCK).unwrap()));
        MmioTransport::restore(Arc::new(Mutex::new(entropy())), guest_ram(), line, &state).unwrap_err()
    };
    let version = MmioTransportState { version: 9, ..state.clone() };
    assert!(matches!(refused(version), MmioRestoreError::Version { found: 9 }));
    let other = MmioTransportState { device_type: 2, ..state.clone() };
    assert!(matches!(refused(other), MmioRestoreError::OtherDevice));
    let queues = MmioTransportState { queues: Vec::new(), ..state.clone() };
    assert!(matches!(refused(queues), MmioRestoreError::OtherDevice));
    let features = MmioTransportState { driver_features: 1 << 5, ..state };
    assert!(matches!(refused(features), MmioRestoreError::Features { missing: 0x20 }));
}

#[test]
fn a_restored_queue_outside_ram_stops_the_device_when_it_is_resumed() {
    let mut driver = driver();
    driver.init(0, 8);
    driver.transport.pause();
    let mut state = driver.transport.save();
    state.queues[0].used_ring = RAM_BYTES;
    let mut moved = driver.moved_to(entropy(), &state);
    assert!(matches!(moved.transport.resume(), Err(StartError::Queue { index: 0 })));
    assert_eq!(moved.status(), STATUS_READY | STATUS_NEEDS_RESET);
    moved.init(0, 8);
    use_device(&mut moved);
}

#[test]
fn a_driver_that_has_failed_stops_its_device() {
    let mut driver = driver();
    driver.init(0, 8);
    driver.write(register::VIRTIO_MMIO_STATUS, STATUS_READY | status::FAILED);
    driver.offer(&[(DATA, 16, true)]);
    driver.notify();
    driver.settle();
    assert_eq!(driver.used_waiting(), 0);
    driver.init(0, 8);
    use_device(&mut driver);
}

#[test]
fn registers_do_not_wait_for_a_device_that_is_busy() {
    let mut driver = driver();
    driver.init(0, 8);
    let device = driver.device.clone();
    let busy = lock(&device);
    let (done, waited) = channel();
    let mut transport = driver.transport;
    let vcpu = std::thread::spawn(move || {
        let mut data = [0; 4];
        for offset in (0..0x110).step_by(4) {
            transport.read(offset, &mut data);
        }
        transport.write(u64::from(register::VIRTIO_MMIO_INTERRUPT_ACK), &[1, 0, 0, 0]);
        transport.write(u64::from(register::VIRTIO_MMIO_QUEUE_NOTIFY), &[0; 4]);
        done.send(()).unwrap();
    });
    let answer = waited.recv_timeout(Duration::from_secs(20));
    drop(busy);
    answer.expect("no register waits for the device's lock");
    vcpu.join().unwrap();
}

#[test]
fn notify_events_are_the_device_s_own() {
    let mut driver = driver();
    driver.init(0, 8);
    let head = driver.offer(&[(DATA, 16, true)]);
    driver.transport.notify_events()[0].write(1).unwrap();
    assert_eq!(driver.take_used(), (head.into(), 16));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever is read and written, in whatever order: no panic, and after a reset the device works.
    #[test]
    fn any_accesses_leave_a_device_that_a_reset_brings_back(
        accesses in prop::collection::vec((any::<bool>(), offset(), width(), value()), 0..200)
    ) {
        let mut driver = driver();
        for (is_write, offset, width, value) in accesses {
            let mut data = value.to_le_bytes()[..width].to_vec();
            if is_write {
                driver.transport.write(offset, &data);
            } else {
                driver.transport.read(offset, &mut data);
            }
        }
        driver.settle();
        driver.transport.pause();
        drop(driver.transport.resume());
        driver.init(0, 8);
        use_device(&mut driver);
    }
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![8 => (0_u64..0x44).prop_map(|register| register * 4), 1 => any::<u64>(), 1 => 0_u64..0x1000]
}

fn width() -> impl Strategy<Value = usize> {
    prop_oneof![9 => Just(4_usize), 1 => 0_usize..=8]
}

/// Values that drivers write, so that the way to a running device is found, and others.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => prop::sample::select(vec![0, 1, 2, 3, 8, 11, 15, 128, 256, DESC_TABLE, AVAIL_RING, USED_RING]),
        1 => any::<u64>(),
    ]
}

/// A proptest of the above form finds running devices only if drivers' values lead there: this is one such way.
#[test]
fn the_values_above_lead_to_a_running_device() {
    let mut driver = driver();
    let accesses = [
        (register::VIRTIO_MMIO_STATUS, 3),
        (register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
        (register::VIRTIO_MMIO_DRIVER_FEATURES, 1),
        (register::VIRTIO_MMIO_STATUS, 11),
        (register::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1_0000),
        (register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x2_0000),
        (register::VIRTIO_MMIO_QUEUE_USED_LOW, 0x3_0000),
        (register::VIRTIO_MMIO_QUEUE_READY, 1),
        (register::VIRTIO_MMIO_STATUS, 15),
    ];
    for (register, value) in accesses {
        driver.write(register, value);
    }
    assert_eq!(driver.status(), STATUS_READY);
    driver.ram.write_obj(0_u8, vm_memory::GuestAddress(0)).unwrap();
}
