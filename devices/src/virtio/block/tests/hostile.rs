//! What a driver must not do, and what an unlucky host does not let us do.

use proptest::prelude::*;

use super::*;

/// Puts a chain into the table as it is, offers its head 0, and expects the device to stop; then resets it and
/// expects it to work.
fn expect_stop(descriptors: &[(u64, u32, u16, u16)], indirect: &[(u64, u32, u16, u16)]) {
    for engine in ENGINES {
        let disk = blank();
        let mut driver = driver(&disk, engine);
        driver.put(HEADER, &header(IN, 0));
        driver.put_descriptors(DESC_TABLE, 0, descriptors);
        driver.put_descriptors(TABLE, 0, indirect);
        driver.offer_head(0);
        driver.expect_device_stops();
        assert_eq!(driver.used_waiting(), 0);
        driver.init(0, 64);
        assert_eq!(request(&mut driver, IN, 0, &[(BUFFER, 512)]), (OK, 513));
    }
}

/// An indirect table of the tests' own.
const TABLE: u64 = DATA + 0x8_0000;

const HEAD: (u64, u32, u16, u16) = (HEADER, 16, NEXT, 1);

#[test]
fn a_loop_stops_the_device() {
    expect_stop(&[HEAD, (BUFFER, 512, WRITE | NEXT, 1)], &[]);
    expect_stop(&[(HEADER, 16, NEXT, 0)], &[]);
    expect_stop(&[(TABLE, 32, INDIRECT, 0)], &[HEAD, (BUFFER, 512, WRITE | NEXT, 1)]);
}

#[test]
fn a_chain_that_leaves_its_table_stops_the_device() {
    expect_stop(&[HEAD, (BUFFER, 512, WRITE | NEXT, 64)], &[]);
    expect_stop(&[HEAD, (BUFFER, 512, WRITE | NEXT, u16::MAX)], &[]);
    expect_stop(&[(TABLE, 32, INDIRECT, 0)], &[HEAD, (BUFFER, 512, WRITE | NEXT, 2)]);
}

#[test]
fn an_indirect_table_that_cannot_be_stops_the_device() {
    expect_stop(&[(TABLE, 0, INDIRECT, 0)], &[HEAD]);
    expect_stop(&[(TABLE, 33, INDIRECT, 0)], &[HEAD, (STATUS, 1, WRITE, 0)]);
    expect_stop(&[(RAM_BYTES - 8, 32, INDIRECT, 0)], &[]);
    expect_stop(&[(u64::MAX - 8, 32, INDIRECT, 0)], &[]);
    expect_stop(&[(TABLE, u32::MAX - 15, INDIRECT, 0)], &[HEAD, (STATUS, 1, WRITE, 0)]);
    // Nested.
    expect_stop(&[(TABLE, 32, INDIRECT, 0)], &[HEAD, (TABLE, 32, INDIRECT, 0)]);
    expect_stop(&[HEAD, (TABLE, 16, INDIRECT, 0)], &[(TABLE, 16, INDIRECT, 0)]);
}

#[test]
fn an_indirect_chain_longer_than_the_queue_stops_the_device() {
    let mut chain = vec![(BUFFER, 16, NEXT, 0); 66];
    (1..).zip(&mut chain).for_each(|(next, descriptor)| descriptor.3 = next);
    chain[65] = (STATUS, 1, WRITE, 0);
    expect_stop(&[(TABLE, 66 * 16, INDIRECT, 0)], &chain);
}

#[test]
fn memory_that_is_not_there_stops_the_device() {
    let status = (STATUS, 1, WRITE, 0);
    for buffer in [(RAM_BYTES, 512), (RAM_BYTES - 511, 512), (u64::MAX - 100, 512), (BUFFER, u32::MAX)] {
        expect_stop(&[HEAD, (buffer.0, buffer.1, WRITE | NEXT, 2), status], &[]);
    }
    expect_stop(&[(RAM_BYTES - 8, 16, NEXT, 1), status], &[]);
    expect_stop(&[HEAD, (RAM_BYTES, 1, WRITE, 0)], &[]);
}

#[test]
fn a_chain_that_is_no_request_stops_the_device() {
    expect_stop(&[(HEADER, 16, 0, 0)], &[]);
    expect_stop(&[(HEADER, 15, NEXT, 1), (STATUS, 1, WRITE, 0)], &[]);
    expect_stop(&[(STATUS, 1, WRITE, 0)], &[]);
    expect_stop(&[HEAD, (STATUS, 0, WRITE, 0)], &[]);
    expect_stop(&[HEAD, (STATUS, 1, WRITE | NEXT, 2), (BUFFER, 512, 0, 0)], &[]);
}

#[test]
fn an_available_ring_that_runs_ahead_stops_the_device() {
    let mut driver = driver(&blank(), IoEngine::Sync);
    driver.set_avail_index(65);
    driver.expect_device_stops();
    driver.init(0, 64);
    assert_eq!(request(&mut driver, IN, 0, &[(BUFFER, 512)]).0, OK);
}

#[test]
fn a_head_that_is_not_in_the_table_stops_the_device() {
    for head in [64, u16::MAX] {
        let mut driver = driver(&blank(), IoEngine::Sync);
        driver.offer_head(head);
        driver.expect_device_stops();
    }
}

#[test]
fn requests_before_a_broken_one_are_answered() {
    for engine in ENGINES {
        let mut driver = driver(&blank(), engine);
        for slot in 0..4 {
            offer(&mut driver, slot, IN, slot, &[(BUFFER, 512)]);
        }
        driver.offer_head(999);
        driver.expect_device_stops();
        driver.transport.pause();
        assert_eq!(driver.used_waiting(), 4, "{engine:?}");
        assert_eq!(driver.bytes(STATUS, 4), [OK; 4]);
    }
}

/// Where random descriptors point. The rings themselves are there only when a test says so.
fn address(rings_too: bool) -> impl Strategy<Value = u64> {
    let rings = if rings_too { vec![DESC_TABLE, AVAIL_RING, USED_RING, TABLE] } else { vec![BUFFER] };
    prop_oneof![
        6 => (0_u64..8).prop_map(|slot| HEADER + slot * 16),
        6 => (0_u64..64).prop_map(|page| BUFFER + page * 0x1000),
        1 => prop::sample::select(vec![RAM_BYTES - 16, RAM_BYTES - 512, RAM_BYTES, u64::MAX - 15, u64::MAX]),
        2 => (prop::sample::select(rings), 0_u64..1024).prop_map(|(ring, offset)| ring + offset),
    ]
}

fn descriptor(rings_too: bool) -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let length = prop_oneof![
        4 => Just(16_u32), 4 => Just(512_u32), 3 => Just(1_u32), 1 => Just(0_u32), 2 => 0_u32..5000, 1 => any::<u32>(),
    ];
    let flags = prop_oneof![3 => Just(0), 6 => Just(NEXT), 6 => Just(WRITE), 6 => Just(NEXT | WRITE), 1 => any::<u16>()];
    let next = prop_oneof![12 => 0_u16..16, 1 => any::<u16>()];
    let buffer = (address(rings_too), length, flags, next);
    let table =
        (prop::sample::select(vec![TABLE, DESC_TABLE, TABLE + 16, RAM_BYTES - 32, 0]), 0_u32..20, 0_u16..16);
    prop_oneof![
        15 => buffer,
        1 => table.prop_map(|(addr, count, next)| (addr, count * 16, INDIRECT, next)),
    ]
}

type Descriptors = Vec<(u64, u32, u16, u16)>;

fn tables(rings_too: bool) -> impl Strategy<Value = (Descriptors, Descriptors, Vec<u16>, Vec<u32>)> {
    (
        prop::collection::vec(descriptor(rings_too), 16),
        prop::collection::vec(descriptor(rings_too), 16),
        prop::collection::vec(prop_oneof![9 => 0_u16..16, 1 => any::<u16>()], 1..16),
        prop::collection::vec(prop_oneof![4 => 0_u32..5, 1 => Just(GET_ID), 1 => any::<u32>()], 8),
    )
}

/// Lets the device have at it, and gives back what RAM was before and is after.
fn run_tables(
    engine: IoEngine,
    (table, indirect, heads, kinds): &(Descriptors, Descriptors, Vec<u16>, Vec<u32>),
) -> [Vec<u8>; 2] {
    let disk = image(&pattern(0x5a, 64 * 512));
    let mut driver = driver(&disk, engine);
    for (slot, &kind) in (0..).zip(kinds) {
        driver.put(HEADER + slot * 16, &header(kind, slot));
    }
    driver.put_descriptors(DESC_TABLE, 0, table);
    driver.put_descriptors(TABLE, 0, indirect);
    for &head in heads {
        driver.offer_head(head);
    }
    let length = usize::try_from(RAM_BYTES).unwrap();
    let before = driver.bytes(0, length);
    driver.notify();
    driver.settle();
    // Whatever is in flight ends here: a device that hung would hang the test.
    driver.transport.pause();
    let after = driver.bytes(0, length);
    driver.init(0, 64);
    assert_eq!(request(&mut driver, IN, 0, &[(BUFFER, 512)]), (OK, 513));
    [before, after]
}

/// Whether a descriptor lets the device write to `addr`.
fn may_write(descriptors: &[(u64, u32, u16, u16)], addr: u64) -> bool {
    descriptors
        .iter()
        .any(|&(start, len, flags, _)| flags & WRITE != 0 && addr >= start && addr - start < u64::from(len))
}

/// The addresses at which RAM has changed, and what is there now. Pages that are the same are skipped at once.
fn differences(before: &[u8], after: &[u8]) -> Vec<(u64, u8)> {
    let pages = (0_u64..).step_by(4096).zip(before.chunks(4096).zip(after.chunks(4096)));
    let changed = pages.filter(|(_, (before, after))| before != after);
    changed
        .flat_map(|(start, (before, after))| {
            let bytes = (start..).zip(before.iter().zip(after));
            bytes.filter(|(_, (old, new))| old != new).map(|(addr, (_, &new))| (addr, new))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Random tables: the device ends, and writes only where they let it, and to its used ring.
    #[test]
    fn nothing_is_written_outside_the_buffers_that_are_named(tables in tables(false), engine in prop::sample::select(&ENGINES[..])) {
        let [before, after] = run_tables(engine, &tables);
        let used_ring = USED_RING..USED_RING + 4 + 64 * 8 + 2;
        for (addr, new) in differences(&before, &after) {
            let named = used_ring.contains(&addr) || may_write(&tables.0, addr) || may_write(&tables.1, addr);
            prop_assert!(named, "{addr:#x} was written with {new:#x}");
        }
    }

    /// The same, with buffers in the rings: what is written there may be anything, but it ends.
    #[test]
    fn rings_that_change_while_they_are_served_do_not_hang(tables in tables(true), engine in prop::sample::select(&ENGINES[..])) {
        run_tables(engine, &tables);
    }
}

mod refused_io_uring {
    //! Unsafe because a thread's seccomp filter is installed by bare prctl calls.
    #![expect(unsafe_code, reason = "prctl has no safe wrapper")]

    use super::*;

    /// Has the kernel answer EPERM to io_uring_setup on this thread, as container runtimes do.
    fn refuse_io_uring() {
        let instruction =
            |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
        let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
        let eperm = u32::try_from(libc::EPERM).unwrap();
        let mut filter = [
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, setup),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | eperm),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
        // SAFETY: no pointers are passed.
        let no_new_privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        // SAFETY: the program and its four instructions live until the call returns.
        let filtered =
            unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        assert_eq!((no_new_privileges, filtered), (0, 0), "{}", io::Error::last_os_error());
    }

    #[test]
    fn a_host_without_io_uring_is_told_apart_and_sync_still_works() {
        let disk = blank();
        // The filter is the thread's, and goes with it.
        let thread = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    refuse_io_uring();
                    let refused = Block::new(&config(disk.path(), IoEngine::Async), BlockMetrics::default());
                    let refused = refused.unwrap_err();
                    assert!(matches!(refused, BlockError::NoIoUring { .. }), "{refused:?}");
                    assert!(refused.to_string().contains("io_engine"), "{refused}");
                    let sync = Block::new(&config(disk.path(), IoEngine::Sync), BlockMetrics::default());
                    assert!(sync.is_ok(), "and the disk was unlocked");
                })
                .join()
        });
        thread.unwrap();
    }
}
