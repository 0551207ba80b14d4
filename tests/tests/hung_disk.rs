//! A disk that does not answer: nobody waits for it without end, and who does not need it does not wait at all.
//!
//! It takes as long as the driver's patience with its devices, so it has a file of its own.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs;

use serde_json::json;
use tests::guest::mmio;
use tests::host::on_kvm_host;
use tests::vmm::Vmm;

const LIMITER: &[u8] = br#"{"drive_id": "data", "rate_limiter": {"ops": {"size": 100, "refill_time": 100}}}"#;

/// A VM whose guest writes without end to a disk that has stopped answering.
fn with_hung_disk() -> Vmm {
    let vmm = Vmm::configured(&format!("disk-write {} 1000000", mmio(0)));
    let disk = vmm.folder().join("disk");
    fs::write(&disk, vec![0; 8 << 20]).unwrap();
    vmm.drive("data", &disk, false, false);
    vmm.start_instance();
    vmm.wait_for_counter("faultless_block_write_total{drive=\"data\"}", 1);
    vmm.hang_in_disk_call("devices");
    vmm
}

#[test]
fn requests_that_need_the_disk_fail_and_others_are_answered_meanwhile() {
    on_kvm_host(|| {
        let mut vmm = with_hung_disk();
        let client = vmm.client().clone();
        let patch = std::thread::spawn(move || client.raw("PATCH", "/drives/data", Some(LIMITER)).unwrap());
        (0..20).for_each(|_| assert_eq!(vmm.state(), "Running"));
        assert!(!patch.is_finished(), "the disk hangs, so what needs it is not answered at once");
        let answer = patch.join().unwrap();
        assert_eq!(answer.status, 400);
        assert!(answer.fault_message().contains("did not answer within"), "{}", answer.fault_message());

        let message = vmm.refuse("PATCH", "/vm", &json!({ "state": "Paused" }));
        assert!(message.contains("did not answer within"), "{message}");
        assert_eq!(vmm.state(), "Running");

        vmm.signal("TERM");
        assert_eq!(vmm.wait_for_exit().code(), Some(1));
        assert!(vmm.log().contains("the microVM has ended"), "{}", vmm.log());
        vmm.left_nothing_behind();
    });
}
