//! Clients of the real process that are many, slow or too large: each is told, and the others are served.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde_json::json;
use tests::host::on_kvm_host;
use tests::vmm::{Vmm, WAIT};

const CONNECTIONS_MAX: usize = 10;
const PAYLOAD_BYTES_MAX: usize = 51_200;

fn connect(vmm: &Vmm) -> UnixStream {
    let stream = UnixStream::connect(vmm.client().path()).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream
}

/// A connection that is served: it has asked for something and been answered.
fn served(vmm: &Vmm) -> UnixStream {
    let mut stream = connect(vmm);
    stream.write_all(b"GET /version HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    stream
}

#[test]
fn the_eleventh_connection_is_told_so_and_a_free_place_is_given_away_again() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let mut open: Vec<_> = (0..CONNECTIONS_MAX).map(|_| served(&vmm)).collect();
        let mut answer = String::new();
        connect(&vmm).read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 \r\n"), "{answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n{ \"error\": \"Too many open connections\" }"), "{answer}");

        open.pop();
        let deadline = Instant::now() + WAIT;
        while vmm.client().raw("GET", "/version", None).unwrap().status == 503 {
            assert!(Instant::now() < deadline, "a place that was given back stays taken");
        }
    });
}

#[test]
fn a_body_over_the_limit_is_refused_and_one_at_the_limit_is_read() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let body = |bytes: usize| vec![b' '; bytes];
        let over = vmm.client().raw("PUT", "/machine-config", Some(&body(PAYLOAD_BYTES_MAX + 1))).unwrap();
        assert_eq!(over.status, 400);
        assert!(over.fault_message().contains("51201 is larger than the limit of 51200"), "{over:?}");

        let mut at_limit = json!({ "vcpu_count": 1, "mem_size_mib": 64 }).to_string().into_bytes();
        at_limit.resize(PAYLOAD_BYTES_MAX, b' ');
        assert_eq!(vmm.client().raw("PUT", "/machine-config", Some(&at_limit)).unwrap().status, 204);
    });
}

#[test]
fn the_limit_of_a_body_can_be_set() {
    on_kvm_host(|| {
        let vmm = Vmm::start_with(&["--http-api-max-payload-size", "100"]);
        let body = vec![b' '; 101];
        let refused = vmm.client().raw("PUT", "/machine-config", Some(&body)).unwrap();
        assert!(refused.fault_message().contains("larger than the limit of 100"), "{refused:?}");
    });
}

#[test]
fn half_a_body_is_refused_in_the_end_and_keeps_nobody_waiting() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let half = b"PUT /machine-config HTTP/1.1\r\nContent-Length: 44\r\n\r\n{\"vcpu_count\": 1,";
        let (mut waiting, mut gone) = (connect(&vmm), connect(&vmm));
        waiting.write_all(half).unwrap();
        gone.write_all(half).unwrap();
        drop(gone);
        vmm.machine(2, 64);
        let mut answer = String::new();
        waiting.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("did not arrive"), "{answer}");
        assert_eq!(vmm.get("/machine-config")["vcpu_count"], 2, "half a body changed something");
    });
}

#[test]
fn nonsense_ends_one_connection_and_no_other() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let mut stream = connect(&vmm);
        stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 no HTTP\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        // Whether a refusal or nothing comes back, the connection ends.
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(vmm.state(), "Not started");
    });
}
