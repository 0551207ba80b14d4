//! Devices that go on in another process: in the middle of I/O, slowed down, with what was typed.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::guest::{PAGE_BYTES, fill_page, mmio};
use tests::vmm::WAIT;
use tests::vmm::snapshot::with;

use super::*;

const MIB: usize = 1 << 20;
/// What a request of the guest moves, and how many are in flight.
const REQUEST_KIB: usize = 64;
const IN_FLIGHT: usize = 8;
/// Where the guest's requests have their payloads.
const BUFFER: u64 = 2 << 20;
const READS: &str = "faultless_block_read_total{drive=\"data\"}";
const WRITES: &str = "faultless_block_write_total{drive=\"data\"}";
const THROTTLED: &str = "faultless_block_rate_limiter_throttled_events_total{drive=\"data\"}";

/// A guest that does what is typed, with a disk in `folder`.
fn with_disk(folder: &Path, more: &Value) -> (Vmm, PathBuf) {
    let disk = folder.join("disk");
    fs::write(&disk, vec![0x5a; 4 * MIB]).unwrap();
    let drive = json!({ "drive_id": "data", "path_on_host": disk, "is_root_device": false });
    let mut vmm = Vmm::configured(&format!("fill {FILLED_MIB} {SEED} shell exit"));
    vmm.grant("PUT", "/drives/data", &with(drive, more));
    vmm.start_instance();
    vmm.wait_for_line("guest: shell");
    (vmm, disk)
}

/// A load by `Lazy` with another file for the drive `id`.
fn on(files: &SnapshotFiles, id: &str, disk: &Path) -> Value {
    let drives = json!([{ "drive_id": id, "path_on_host": disk }]);
    with(files.load("Lazy"), &json!({ "drive_overrides": drives }))
}

fn bucket(size: usize, refill_ms: u64) -> Value {
    json!({ "size": size, "refill_time": refill_ms })
}

/// What a disk has that the guest has written from end to end: each request's payload is that of one slot.
fn is_written(disk: &Path) {
    let slot = |slot: usize| {
        let mut payload = vec![0; REQUEST_KIB << 10];
        let start = BUFFER + (slot * payload.len()) as u64;
        for (nth, page) in (0..).zip(payload.chunks_mut(usize::try_from(PAGE_BYTES).unwrap())) {
            fill_page(start + nth * PAGE_BYTES, SEED, page);
        }
        payload
    };
    let payloads: Vec<_> = (0..IN_FLIGHT).map(slot).collect();
    for (nth, written) in fs::read(disk).unwrap().chunks(REQUEST_KIB << 10).enumerate() {
        assert!(payloads.iter().any(|payload| payload == written), "request {nth} on {}", disk.display());
    }
}

#[test]
fn requests_in_flight_are_done_on_both_sides() {
    on_kvm_host(|| {
        for (engine, command, count) in
            [("Sync", "disk-write", WRITES), ("Async", "disk-write", WRITES), ("Async", "disk-read", READS)]
        {
            let folder = tempfile::tempdir().unwrap();
            let files = SnapshotFiles::new(folder.path(), "saved");
            // As slow as that it is saved in the middle, with requests that wait for the limiter.
            let limiter = json!({ "bandwidth": bucket(MIB / 2, 50) });
            let (mut vmm, disk) =
                with_disk(folder.path(), &json!({ "io_engine": engine, "rate_limiter": limiter }));
            vmm.type_text(&format!("{command} {} 4 {REQUEST_KIB} {IN_FLIGHT}\n", mmio(0)));
            vmm.wait_for_counter(count, 4);
            vmm.pause();
            assert!(!vmm.console().contains("failed requests"), "it is done already");
            vmm.save(&files);
            let copy = folder.path().join("copy");
            fs::copy(&disk, &copy).unwrap();
            let mut restored = Vmm::loaded(&on(&files, "data", &copy));
            vmm.resume();
            for (vmm, disk) in [(&mut restored, &copy), (&mut vmm, &disk)] {
                let line = vmm.wait_for_line("failed requests");
                assert!(line.contains(&format!("{command} 4 MiB, 0 failed requests")), "{engine}: {line}");
                if command == "disk-write" {
                    is_written(disk);
                }
                quits(vmm);
            }
        }
    });
}

#[test]
fn a_disk_that_is_not_the_guests_is_refused() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let (mut vmm, disk) = with_disk(folder.path(), &json!({}));
        vmm.pause();
        vmm.save(&files);
        let (shorter, none) = (folder.path().join("shorter"), folder.path().join("none"));
        fs::write(&shorter, vec![0x5a; MIB]).unwrap();
        for (load, said) in [
            (files.load("Lazy"), "is in use by another drive or process"),
            (files.load("Lazy"), "name a copy of its disk in `drive_overrides`"),
            (on(&files, "data", &shorter), "is 1048576 bytes and was 4194304"),
            (on(&files, "data", &none), "No such file or directory"),
            (on(&files, "root", &disk), "the snapshot has no drive `root`"),
        ] {
            let refusal = Vmm::refused_load(&load);
            assert!(refusal.starts_with("Load snapshot error: "), "{refusal}");
            assert!(refusal.contains(said), "{refusal}");
        }
        vmm.resume();
        quits(&mut vmm);
        is_alive(&mut Vmm::restored(&files, "Lazy"));
    });
}

#[test]
fn a_limiter_that_was_used_up_still_is() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let hour_ms = 3_600_000;
        let limiter = json!({ "rate_limiter": { "ops": bucket(2, hour_ms) } });
        let (mut vmm, _) = with_disk(folder.path(), &limiter);
        vmm.type_text(&format!("disk-read {} 1 128 1\n", mmio(0)));
        vmm.wait_for_counter(THROTTLED, 1);
        vmm.pause();
        assert_eq!(vmm.counter(READS), 2);
        vmm.save(&files);
        drop(vmm);
        let mut vmm = Vmm::restored(&files, "Lazy");
        vmm.wait_for_counter(THROTTLED, 1);
        assert_eq!(vmm.counter(READS), 0, "there is nothing left to spend");
        assert_eq!(vmm.get("/vm/config")["drives"][0]["rate_limiter"]["ops"]["size"], json!(2));
        let free = json!({ "drive_id": "data", "rate_limiter": { "ops": bucket(0, 0) } });
        vmm.grant("PATCH", "/drives/data", &free);
        vmm.wait_for_line("guest: disk-read 1 MiB, 0 failed requests");
        quits(&mut vmm);
    });
}

#[test]
fn randomness_goes_on() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let mut vmm = Vmm::configured("shell exit");
        vmm.entropy();
        vmm.start_instance();
        vmm.wait_for_line("guest: shell");
        let draws = |vmm: &mut Vmm| {
            vmm.type_text(&format!("rng {}\n", mmio(0)));
            let line = vmm.wait_for_line("guest: rng");
            assert!(!line.contains("rng 0 of"), "{line}");
            vmm.wait_for_line("guest: done");
        };
        draws(&mut vmm);
        vmm.pause();
        vmm.save(&files);
        vmm.resume();
        let restored = Vmm::restored(&files, "Lazy");
        [vmm, restored].iter_mut().for_each(draws);
    });
}

#[test]
fn what_was_typed_before_is_read_after() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let mut vmm = filled();
        vmm.pause();
        vmm.type_text("hello\n");
        wait_until_taken(&vmm);
        vmm.save(&files);
        drop(vmm);
        for backend in ["File", "Lazy"] {
            let mut vmm = Vmm::restored(&files, backend);
            vmm.wait_for_line("guest: hello");
            vmm.wait_for_line("guest: done");
            vmm.grant("PUT", "/actions", &json!({ "action_type": "SendCtrlAltDel" }));
            quits(&mut vmm);
        }
    });
}

/// Waits until the process has read all that was typed.
fn wait_until_taken(vmm: &Vmm) {
    let started = Instant::now();
    let input = File::open(format!("/proc/{}/fd/0", vmm.id())).unwrap();
    while rustix::io::ioctl_fionread(&input).unwrap() > 0 {
        assert!(started.elapsed() < WAIT, "what is typed is not read");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_the_guest_says_goes_where_the_load_says() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = saved(folder.path(), "saved");
        let said = folder.path().join("said");
        let elsewhere = json!({ "serial_override": { "serial_out_path": said } });
        let mut vmm = Vmm::loaded(&with(files.load("Lazy"), &elsewhere));
        assert_eq!(vmm.get("/vm/config")["serial"]["serial_out_path"], json!(said));
        vmm.type_text("hello\nquit\n");
        vmm.ends_cleanly();
        let text = fs::read_to_string(&said).unwrap();
        assert!(text.contains("guest: hello") && text.contains("guest: done"), "{text}");
        assert!(!vmm.console().contains("guest: "), "{}", vmm.console());
    });
}

#[test]
fn as_many_processors_as_there_can_be_are_brought_back() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let files = SnapshotFiles::new(folder.path(), "saved");
        let mut vmm = Vmm::configured("shell exit");
        vmm.machine(32, 64);
        vmm.start_instance();
        vmm.wait_for_line("guest: shell");
        vmm.pause();
        vmm.save(&files);
        drop(vmm);
        for backend in ["File", "Lazy"] {
            let mut vmm = Vmm::restored(&files, backend);
            is_alive(&mut vmm);
            let vcpus = vmm.threads().into_iter().filter(|name| name.starts_with("vcpu")).count();
            assert_eq!(vcpus, 32);
            quits(&mut vmm);
        }
    });
}
