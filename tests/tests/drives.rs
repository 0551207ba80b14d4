//! Drives and the entropy device in use: changed, slowed down, paused and misused while the bare-metal guest runs.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::guest::{PAGE_BYTES, fill_pattern, mmio};
use tests::host::on_kvm_host;
use tests::vmm::Vmm;

const MIB: usize = 1 << 20;
const READS: &str = "faultless_block_read_total{drive=\"data\"}";
const WRITES: &str = "faultless_block_write_total{drive=\"data\"}";
const UPDATES: &str = "faultless_block_update_total{drive=\"data\"}";
const THROTTLED: &str = "faultless_block_rate_limiter_throttled_events_total{drive=\"data\"}";
/// So many MiB that a guest does not come to their end.
const ENDLESS: &str = "1000000";
/// virtio 1.2, 4.2.2: registers of a virtio-mmio device.
const DEVICE_FEATURES: u64 = 0x10;
const INTERRUPT_STATUS: u64 = 0x60;
const CONFIG: u64 = 0x100;
/// virtio 1.2, 5.2.3.
const FEATURE_READ_ONLY: u32 = 1 << 5;
const FEATURE_FLUSH: u32 = 1 << 9;

fn image(vmm: &Vmm, name: &str, byte: u8, bytes: usize) -> PathBuf {
    let path = vmm.folder().join(name);
    fs::write(&path, vec![byte; bytes]).unwrap();
    path
}

/// A VMM about to boot with `commands` and a disk that is configured with `more`.
fn with_disk(commands: &str, disk_bytes: usize, more: Value) -> (Vmm, PathBuf) {
    let commands = commands.replace("{disk}", &mmio(0).to_string()).replace("{endless}", ENDLESS);
    let vmm = Vmm::configured(&commands);
    let disk = image(&vmm, "disk", 0x5a, disk_bytes);
    let mut body = json!({ "drive_id": "data", "path_on_host": disk, "is_root_device": false });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    vmm.grant("PUT", "/drives/data", &body);
    (vmm, disk)
}

fn patch(vmm: &Vmm, change: Value) {
    let mut body = json!({ "drive_id": "data" });
    body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    vmm.grant("PATCH", "/drives/data", &body);
}

/// What the guest's next `peek` of an address said.
fn peeked(vmm: &mut Vmm, address: u64) -> u32 {
    let line = vmm.wait_for_line(&format!("guest: peek {address:#x}: "));
    let hex = line.rsplit("0x").next().unwrap();
    u32::from_str_radix(hex, 16).unwrap()
}

/// Where `disk-read` with one request in flight leaves what it read.
const BUFFER: u64 = 0x20_0000;

#[test]
fn another_file_shows_its_content_and_its_size() {
    on_kvm_host(|| {
        let registers = (mmio(0) + CONFIG, mmio(0) + INTERRUPT_STATUS);
        let look = format!("disk-read {{disk}} 1 128 1 peek {BUFFER} peek {}", registers.0);
        let commands = format!("{look} echo peek {} {look} exit", registers.1);
        let (mut vmm, _) = with_disk(&commands, 2 * MIB, json!({}));
        let other = image(&vmm, "other", 0xc3, 3 * MIB);
        vmm.start_instance();
        assert_eq!(peeked(&mut vmm, BUFFER), 0x5a5a_5a5a);
        assert_eq!(peeked(&mut vmm, registers.0), 4096, "sectors");
        vmm.wait_for_line("guest: echo");
        patch(&vmm, json!({ "path_on_host": other }));
        vmm.type_text("quit\n");
        assert_ne!(peeked(&mut vmm, registers.1) & 2, 0, "the guest was not told of the change");
        assert_eq!(peeked(&mut vmm, BUFFER), 0xc3c3_c3c3);
        assert_eq!(peeked(&mut vmm, registers.0), 6144, "sectors");
        vmm.ends_cleanly();
    });
}

#[test]
fn a_guest_that_reads_without_pause_gets_every_file_it_is_given() {
    on_kvm_host(|| {
        for engine in ["Sync", "Async"] {
            let commands = "hello disk-read {disk} {endless} 64 8";
            let (mut vmm, disk) = with_disk(commands, MIB, json!({ "io_engine": engine }));
            let other = image(&vmm, "other", 0xc3, MIB);
            vmm.start_instance();
            vmm.wait_for_line("guest: hello");
            for change in 1..=10 {
                let read = vmm.counter(READS);
                vmm.wait_for_counter(READS, read + 1);
                let path = if change % 2 == 1 { &other } else { &disk };
                patch(&vmm, json!({ "path_on_host": path }));
                assert_eq!(vmm.get("/vm/config")["drives"][0]["path_on_host"], json!(path));
                assert_eq!(vmm.counter(UPDATES), change);
            }
            let read = vmm.counter(READS);
            vmm.wait_for_counter(READS, read + 1);
            // The file that was taken away is free for others, and the one in use is not.
            let second = Vmm::start();
            second.drive("data", &other, false, false);
            second.refuse(
                "PUT",
                "/drives/data2",
                &json!({ "drive_id": "data2", "path_on_host": disk, "is_root_device": false }),
            );
            assert_eq!(vmm.state(), "Running", "{engine}");
        }
    });
}

#[test]
fn a_change_that_cannot_be_leaves_the_drive_as_it_was() {
    on_kvm_host(|| {
        let (mut vmm, disk) = with_disk("hello disk-read {disk} {endless} 64 8", MIB, json!({}));
        let change = |id: &str, path: &str| json!({ "drive_id": id, "path_on_host": path });
        vmm.refuse("PATCH", "/drives/data", &change("data", "/before/the/start"));
        vmm.start_instance();
        vmm.wait_for_line("guest: hello");
        let message = vmm.refuse("PATCH", "/drives/nobody", &change("nobody", disk.to_str().unwrap()));
        assert!(message.contains("nobody"), "{message}");
        for path in ["/no/such/disk", "/", "/dev/null"] {
            let message = vmm.refuse("PATCH", "/drives/data", &change("data", path));
            assert!(message.contains(path), "{message}");
        }
        vmm.refuse("PATCH", "/drives/data", &change("other", disk.to_str().unwrap()));
        assert_eq!(vmm.get("/vm/config")["drives"][0]["path_on_host"], json!(disk));
        assert_eq!(vmm.counter(UPDATES), 0);
        let read = vmm.counter(READS);
        vmm.wait_for_counter(READS, read + 1);
    });
}

#[test]
fn a_rate_limiter_can_be_set_and_taken_away_while_the_guest_reads() {
    on_kvm_host(|| {
        let limits = json!({ "rate_limiter": { "bandwidth": { "size": 1 << 30, "refill_time": 1000 } } });
        let (mut vmm, _) = with_disk("hello disk-read {disk} {endless} 4 1", MIB, limits);
        vmm.start_instance();
        vmm.wait_for_line("guest: hello");
        let throttled = vmm.counter(THROTTLED);
        patch(&vmm, json!({ "rate_limiter": { "ops": { "size": 10, "refill_time": 1000 } } }));
        vmm.wait_for_counter(THROTTLED, throttled + 3);
        let limiter = &vmm.get("/vm/config")["drives"][0]["rate_limiter"];
        assert_eq!(limiter["ops"]["size"], 10);
        assert_eq!(limiter["bandwidth"]["size"], 1 << 30, "a bucket that is not named stays as it is");
        patch(&vmm, json!({ "rate_limiter": { "ops": { "size": 0, "refill_time": 0 } } }));
        // At ten a second they would take longer than anything here is waited for.
        let read = vmm.counter(READS);
        vmm.wait_for_counter(READS, read + 2000);
    });
}

#[test]
fn a_rate_limiter_holds_from_the_start() {
    on_kvm_host(|| {
        let limits = json!({ "rate_limiter": { "bandwidth": { "size": 65_536, "refill_time": 20 } } });
        let (mut vmm, _) = with_disk("disk-write {disk} 1 disk-read {disk} 1 echo", MIB, limits);
        vmm.start_instance();
        assert!(vmm.wait_for_line("guest: disk-write").contains(" 0 failed requests"));
        assert!(vmm.wait_for_line("guest: disk-read").contains(" 0 failed requests"));
        assert!(vmm.counter(THROTTLED) > 0);
        assert_eq!(vmm.counter("faultless_block_read_bytes_total{drive=\"data\"}"), MIB as u64);
    });
}

#[test]
fn the_entropy_device_obeys_its_limiter() {
    on_kvm_host(|| {
        let rng = format!("rng {} ", mmio(0));
        let mut vmm = Vmm::configured(&format!("{}echo", rng.repeat(3)));
        let limiter = json!({ "rate_limiter": { "bandwidth": { "size": 64, "refill_time": 100 } } });
        vmm.grant("PUT", "/entropy", &limiter);
        vmm.start_instance();
        for _ in 0..3 {
            vmm.wait_for_line("guest: rng");
        }
        vmm.wait_for_line("guest: echo");
        assert!(vmm.counter("faultless_entropy_entropy_rate_limiter_throttled_total") > 0);
        assert_eq!(vmm.counter("faultless_entropy_entropy_bytes_total"), 3 * 64);
    });
}

#[test]
fn a_read_only_drive_refuses_writes_and_is_read() {
    on_kvm_host(|| {
        for engine in ["Sync", "Async"] {
            let commands = format!(
                "peek {} disk-write {{disk}} 1 disk-read {{disk}} 1 128 1 peek {BUFFER} exit",
                mmio(0) + DEVICE_FEATURES
            );
            let more = json!({ "is_read_only": true, "io_engine": engine });
            let (mut vmm, disk) = with_disk(&commands, MIB, more);
            vmm.start_instance();
            assert_ne!(peeked(&mut vmm, mmio(0) + DEVICE_FEATURES) & FEATURE_READ_ONLY, 0);
            assert!(vmm.wait_for_line("guest: disk-write").contains(" 8 failed requests"));
            assert!(vmm.wait_for_line("guest: disk-read").contains(" 0 failed requests"));
            assert_eq!(peeked(&mut vmm, BUFFER), 0x5a5a_5a5a);
            vmm.ends_cleanly();
            assert!(fs::read(disk).unwrap().iter().all(|byte| *byte == 0x5a));
        }
    });
}

#[test]
fn a_flush_is_offered_where_it_is_done() {
    on_kvm_host(|| {
        for (cache, offered) in [("Unsafe", 0), ("Writeback", FEATURE_FLUSH)] {
            let register = mmio(0) + DEVICE_FEATURES;
            let (mut vmm, _) =
                with_disk(&format!("peek {register} exit"), MIB, json!({ "cache_type": cache }));
            vmm.start_instance();
            assert_eq!(peeked(&mut vmm, register) & FEATURE_FLUSH, offered, "{cache}");
            vmm.ends_cleanly();
        }
    });
}

const REQUEST_BYTES: usize = 128 << 10;
const SLOTS: u64 = 21;

/// The payloads that `fill 3 7` and then `disk-write` send: one for each slot of the guest's driver.
fn payloads() -> HashSet<Vec<u8>> {
    let pages = REQUEST_BYTES as u64 / PAGE_BYTES;
    let page =
        |slot: u64, page: u64| fill_pattern(BUFFER + slot * REQUEST_BYTES as u64 + page * PAGE_BYTES, 7);
    (0..SLOTS).map(|slot| (0..pages).flat_map(|index| page(slot, index)).collect()).collect()
}

fn check_content(disk: &Path, payloads: &HashSet<Vec<u8>>) {
    let content = fs::read(disk).unwrap();
    let untouched = vec![0x5a; REQUEST_BYTES];
    let written = content.chunks(REQUEST_BYTES).filter(|chunk| **chunk != untouched[..]);
    assert!(written.clone().count() > 0);
    let wrong = written.filter(|chunk| !payloads.contains(*chunk)).count();
    assert_eq!(wrong, 0, "requests that are on the disk in part, or with something else");
}

#[test]
fn a_pause_finds_every_write_done_or_not_begun() {
    on_kvm_host(|| {
        let payloads = payloads();
        for engine in ["Sync", "Async"] {
            let commands = "fill 3 7 hello disk-write {disk} {endless}";
            let (mut vmm, disk) = with_disk(commands, 8 * MIB, json!({ "io_engine": engine }));
            vmm.start_instance();
            vmm.wait_for_line("guest: hello");
            let mut written = 0;
            for _ in 0..10 {
                vmm.wait_for_counter(WRITES, written + 1);
                vmm.pause();
                written = vmm.counter(WRITES);
                check_content(&disk, &payloads);
                assert_eq!(vmm.counter(WRITES), written, "{engine}: it writes while it is paused");
                vmm.resume();
            }
            assert_eq!(vmm.counter("faultless_block_device_errors_total{drive=\"data\"}"), 0);
        }
    });
}

#[test]
fn what_is_written_between_pauses_is_read_back() {
    on_kvm_host(|| {
        // Replies of the Sync engine come in order, so each slot of the guest's driver reads what it wrote.
        let commands = "fill 3 7 hello disk-write {disk} 64 fill 3 8 disk-read {disk} 64 walk 2 7 echo exit";
        let (mut vmm, _) = with_disk(commands, 8 * MIB, json!({}));
        vmm.start_instance();
        vmm.wait_for_line("guest: hello");
        for _ in 0..20 {
            vmm.pause();
            vmm.resume();
        }
        assert!(vmm.wait_for_line("guest: disk-write").contains(" 0 failed requests"));
        assert!(vmm.wait_for_line("guest: disk-read").contains(" 0 failed requests"));
        assert!(vmm.wait_for_line("guest: walk").contains(" 0 wrong pages"));
        vmm.type_text("quit\n");
        vmm.ends_cleanly();
    });
}

#[test]
fn a_device_that_was_stopped_is_counted_and_told() {
    on_kvm_host(|| {
        let (mut vmm, _) = with_disk(
            &format!("virtio-abuse {{disk}} loop virtio-abuse {} length rng {} hello spin", mmio(1), mmio(1)),
            MIB,
            json!({}),
        );
        vmm.entropy();
        let metrics = vmm.folder().join("metrics");
        vmm.grant("PUT", "/metrics", &json!({ "metrics_path": metrics }));
        vmm.start_instance();
        // A reset by its driver brings a stopped device back.
        vmm.wait_for_line("guest: rng");
        vmm.wait_for_line("guest: hello");
        assert_eq!(vmm.counter("faultless_block_device_errors_total{drive=\"data\"}"), 1);
        assert_eq!(vmm.counter("faultless_entropy_device_errors_total"), 1);
        vmm.grant("PUT", "/actions", &json!({ "action_type": "FlushMetrics" }));
        let line: Value =
            serde_json::from_str(fs::read_to_string(&metrics).unwrap().lines().last().unwrap()).unwrap();
        assert_eq!(
            (&line["block_data"]["device_errors"], &line["entropy"]["device_errors"]),
            (&json!(1), &json!(1))
        );
        assert_eq!(vmm.state(), "Running");
    });
}
