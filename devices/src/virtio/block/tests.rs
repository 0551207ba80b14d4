use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::NamedTempFile;
use virtio_bindings::virtio_mmio as register;

use super::*;
use crate::limiter::TokenBucketConfig;
use crate::metrics::BlockMetrics;
use crate::sync::lock;
use crate::virtio::test_driver::*;
use crate::virtio::{VirtioDevice, feature};

mod hostile;
mod live;
mod saved;
mod serving;

const ENGINES: [IoEngine; 2] = [IoEngine::Sync, IoEngine::Async];
const SECTORS: u64 = 64;

/// Where the tests put a request's header and status.
const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const BUFFER: u64 = DATA + 0x1000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|index| u8::try_from(index % 251).unwrap() ^ seed).collect()
}

fn image(content: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

fn blank() -> NamedTempFile {
    image(&vec![0; usize::try_from(SECTORS * 512).unwrap()])
}

fn config(path: &Path, engine: IoEngine) -> BlockConfig {
    BlockConfig {
        path: path.to_owned(),
        read_only: false,
        cache: CacheType::Writeback,
        engine,
        limiter: RateLimiterConfig::default(),
    }
}

fn driver_of(config: &BlockConfig) -> TestDriver<Block> {
    let mut driver = TestDriver::new(Block::new(config, BlockMetrics::default()).unwrap());
    driver.init(u64::MAX, 64);
    driver
}

fn driver(disk: &NamedTempFile, engine: IoEngine) -> TestDriver<Block> {
    driver_of(&config(disk.path(), engine))
}

fn metrics(driver: &TestDriver<Block>) -> BlockMetrics {
    lock(&driver.device).metrics().clone()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Offers a request whose data is at `buffers`, without telling the device.
fn offer(driver: &mut TestDriver<Block>, slot: u64, kind: u32, sector: u64, buffers: &[(u64, u32)]) -> u16 {
    let (at, status) = (HEADER + slot * 16, STATUS + slot);
    driver.put(at, &header(kind, sector));
    driver.put(status, &[0xff]);
    let data = buffers.iter().map(|&(addr, len)| (addr, len, kind != OUT));
    let chain: Vec<_> = [(at, 16, false)].into_iter().chain(data).chain([(status, 1, true)]).collect();
    driver.offer(&chain)
}

/// Makes one request and gives its status and the bytes that came.
fn request(driver: &mut TestDriver<Block>, kind: u32, sector: u64, buffers: &[(u64, u32)]) -> (u8, u32) {
    let head = offer(driver, 0, kind, sector, buffers);
    driver.notify();
    let (id, len) = driver.take_used();
    assert_eq!(id, u32::from(head));
    (driver.bytes(STATUS, 1)[0], len)
}

#[test]
fn what_is_written_is_in_the_file_and_is_read_back() {
    for engine in ENGINES {
        let disk = blank();
        let mut driver = driver(&disk, engine);
        let data = pattern(7, 4096);
        driver.put(BUFFER, &data);
        assert_eq!(request(&mut driver, OUT, 3, &[(BUFFER, 4096)]), (OK, 1), "{engine:?}");
        let mut in_file = vec![0; 4096];
        disk.as_file().read_exact_at(&mut in_file, 3 * 512).unwrap();
        assert_eq!(in_file, data);
        assert_eq!(request(&mut driver, FLUSH, 0, &[]), (OK, 1));
        let place = BUFFER + 0x10_000;
        assert_eq!(request(&mut driver, IN, 3, &[(place, 4096)]), (OK, 4097));
        assert_eq!(driver.bytes(place, 4096), data);
        let metrics = metrics(&driver);
        assert_eq!((metrics.read_count.get(), metrics.read_bytes.get()), (1, 4096));
        assert_eq!((metrics.write_count.get(), metrics.write_bytes.get()), (1, 4096));
        assert_eq!(metrics.flush_count.get(), 1);
    }
}

#[test]
fn buffers_of_any_size_make_one_request() {
    for engine in ENGINES {
        let content = pattern(3, 64 * 512);
        let mut driver = driver(&image(&content), engine);
        let pieces = [(BUFFER + 3, 1), (BUFFER + 0x1000, 500), (BUFFER + 0x2000, 0), (BUFFER + 0x3000, 1547)];
        assert_eq!(request(&mut driver, IN, 1, &pieces), (OK, 2049));
        let read: Vec<u8> = pieces
            .iter()
            .flat_map(|&(addr, len)| driver.bytes(addr, usize::try_from(len).unwrap()))
            .collect();
        assert_eq!(read, content[512..512 + 2048], "{engine:?}");
        assert_eq!(driver.bytes(BUFFER + 0x1000 + 500, 16), [0; 16]);
    }
}

#[test]
fn a_request_may_be_cut_into_buffers_anywhere() {
    let content = pattern(9, 64 * 512);
    let disk = image(&content);
    let mut driver = driver(&disk, IoEngine::Sync);
    driver.put(HEADER, &header(IN, 2));
    // The header in three buffers, and the status at the end of the data's.
    let chain = [(HEADER, 4, false), (HEADER + 4, 11, false), (HEADER + 15, 1, false), (BUFFER, 513, true)];
    driver.offer(&chain);
    driver.notify();
    assert_eq!(driver.take_used().1, 513);
    assert_eq!(driver.bytes(BUFFER, 512), content[1024..1536]);
    assert_eq!(driver.bytes(BUFFER + 512, 1), [OK]);
    // Header and data of a write in one buffer.
    driver.put(HEADER, &[header(OUT, 5), pattern(1, 512)].concat());
    driver.offer(&[(HEADER, 528, false), (BUFFER, 1, true)]);
    driver.notify();
    driver.take_used();
    let mut in_file = vec![0; 512];
    disk.as_file().read_exact_at(&mut in_file, 5 * 512).unwrap();
    assert_eq!(in_file, pattern(1, 512));
}

#[test]
fn the_serial_number_names_the_file() {
    let disk = blank();
    let mut driver = driver(&disk, IoEngine::Sync);
    assert_eq!(request(&mut driver, GET_ID, 0, &[(BUFFER, 20)]), (OK, 21));
    assert_eq!(driver.bytes(BUFFER, 20), lock(&driver.device).save().device_id);
    assert_eq!(request(&mut driver, GET_ID, 0, &[(BUFFER + 32, 7), (BUFFER + 64, 13)]), (OK, 21));
    assert_eq!(driver.bytes(BUFFER + 64, 13), driver.bytes(BUFFER + 7, 13));
    assert_eq!(request(&mut driver, GET_ID, 0, &[(BUFFER, 19)]).0, IOERR);
}

#[test]
fn what_cannot_be_done_gets_an_error_and_the_device_goes_on() {
    for engine in ENGINES {
        let mut driver = driver(&blank(), engine);
        for kind in [2, 11, 13, 0x8000_0000, u32::MAX] {
            assert_eq!(request(&mut driver, kind, 0, &[(BUFFER, 512)]).0, UNSUPP);
        }
        for kind in [IN, OUT] {
            for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512] {
                assert_eq!(request(&mut driver, kind, sector, &[(BUFFER, 1024)]), (IOERR, 1), "{sector}");
            }
            assert_eq!(request(&mut driver, kind, 0, &[(BUFFER, 511)]).0, IOERR);
        }
        assert_eq!(metrics(&driver).invalid_reqs_count.get(), 15);
        assert_eq!(request(&mut driver, IN, SECTORS - 1, &[(BUFFER, 512)]), (OK, 513));
        assert_eq!(driver.status(), STATUS_READY);
    }
}

#[test]
fn a_file_that_has_become_shorter_is_an_error_of_the_disk() {
    for engine in ENGINES {
        let disk = blank();
        let mut driver = driver(&disk, engine);
        disk.as_file().set_len(512).unwrap();
        assert_eq!(request(&mut driver, IN, 0, &[(BUFFER, 1024)]).0, IOERR);
        assert_eq!(metrics(&driver).execute_fails.get(), 1);
    }
}

#[test]
fn features_and_capacity_say_what_the_disk_is() {
    let disk = image(&[0; 512 * 5 + 17]);
    let mut config = config(disk.path(), IoEngine::Sync);
    let device = Block::new(&config, BlockMetrics::default()).unwrap();
    assert_eq!(device.features() & (1 << 9 | 1 << 5), 1 << 9);
    drop(device);
    (config.cache, config.read_only) = (CacheType::Unsafe, true);
    let device = Block::new(&config, BlockMetrics::default()).unwrap();
    assert_eq!(device.features() & (1 << 9 | 1 << 5), 1 << 5);
    let mut driver = TestDriver::new(device);
    assert_eq!((driver.read(0x100), driver.read(0x104)), (5, 0), "the half sector is not seen");
    assert_eq!(driver.read(0x10c), SEGMENTS);
    assert_eq!(driver.read(0x110), 0);
    driver.write(0x100, 7);
    assert_eq!(driver.read(0x100), 5, "a driver cannot write the capacity");
    assert_eq!(metrics(&driver).cfg_fails.get(), 2);
    driver.init(u64::MAX, 64);
    assert_eq!(request(&mut driver, OUT, 0, &[(BUFFER, 512)]).0, IOERR, "it is read-only");
    assert_eq!(request(&mut driver, IN, 0, &[(BUFFER, 512)]).0, OK);
    assert_eq!(request(&mut driver, FLUSH, 0, &[]).0, OK, "not offered, and harmless");
}

const SEGMENTS: u32 = 254;

#[test]
fn many_requests_are_all_answered_whatever_the_engine_holds() {
    for engine in ENGINES {
        let content = pattern(5, 64 * 512);
        let mut driver = TestDriver::new(
            Block::new(&config(image(&content).path(), engine), BlockMetrics::default()).unwrap(),
        );
        driver.init(feature::EVENT_IDX | feature::INDIRECT_DESC, 256);
        // Indirect tables, so that more requests wait than the engine takes at a time.
        let (table, count) = (BUFFER + 0x10_0000, 200);
        for number in 0..count {
            let (at, status) = (HEADER + number * 16, BUFFER + number);
            let data = BUFFER + 0x1000 + number * 512;
            driver.put(at, &header(IN, number % SECTORS));
            let entry = table + number * 48;
            driver.put_descriptors(
                entry,
                0,
                &[(at, 16, NEXT, 1), (data, 512, WRITE | NEXT, 2), (status, 1, WRITE, 0)],
            );
            let slot = u16::try_from(number).unwrap();
            driver.put_descriptors(DESC_TABLE, slot, &[(entry, 48, INDIRECT, 0)]);
        }
        for number in 0..count {
            driver.offer_head(u16::try_from(number).unwrap());
        }
        driver.notify();
        let mut heads: Vec<u32> = (0..count).map(|_| driver.take_used().0).collect();
        heads.sort_unstable();
        assert!(heads.into_iter().eq(0..u32::try_from(count).unwrap()), "{engine:?}");
        for number in 0..count {
            let start = usize::try_from(number % SECTORS * 512).unwrap();
            assert_eq!(driver.bytes(BUFFER + 0x1000 + number * 512, 512), content[start..start + 512]);
        }
    }
}

#[test]
fn a_read_only_disk_is_shared_and_a_writable_one_is_not() {
    let disk = blank();
    let read_only = BlockConfig { read_only: true, ..config(disk.path(), IoEngine::Sync) };
    let _first = Block::new(&read_only, BlockMetrics::default()).unwrap();
    let _second = Block::new(&read_only, BlockMetrics::default()).unwrap();
    let refused = Block::new(&config(disk.path(), IoEngine::Sync), BlockMetrics::default()).unwrap_err();
    assert!(refused.to_string().contains("in use"), "{refused}");
}

#[test]
fn a_lock_of_another_opener_counts_whoever_it_is() {
    let disk = blank();
    let other: File = OpenOptions::new().read(true).open(disk.path()).unwrap();
    other.lock_shared().unwrap();
    assert!(Block::new(&config(disk.path(), IoEngine::Sync), BlockMetrics::default()).is_err());
    other.unlock().unwrap();
    assert!(Block::new(&config(disk.path(), IoEngine::Sync), BlockMetrics::default()).is_ok());
}
