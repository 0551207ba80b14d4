//! What the real process says of itself: its log, its metrics file, and the metrics it is scraped for.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::guest::{Entry, bare_metal, mmio};
use tests::host::on_kvm_host;
use tests::vmm::{Launch, Vmm, WAIT};

fn flush(vmm: &Vmm) {
    vmm.grant("PUT", "/actions", &json!({ "action_type": "FlushMetrics" }));
}

/// The metrics file: one JSON object a line.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is cut off");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn count(line: &Value, group: &str, name: &str) -> u64 {
    line[group][name].as_u64().unwrap_or_else(|| panic!("no {group}.{name} in {line}"))
}

#[test]
fn the_metrics_file_counts_what_was_done_since_the_last_line() {
    on_kvm_host(|| {
        let disk_read = format!("disk-read {} 1 64 4", mmio(0));
        let mut vmm = Vmm::configured(&format!("{disk_read} echo {disk_read} {disk_read} echo exit"));
        let (disk, metrics) = (vmm.folder().join("disk"), vmm.folder().join("metrics"));
        fs::write(&disk, vec![0; 1 << 20]).unwrap();
        vmm.drive("data", &disk, false, false);
        vmm.entropy();
        let settings = json!({ "metrics_path": metrics, "emit_id": true, "properties": { "zone": "north" } });
        vmm.grant("PUT", "/metrics", &settings);
        assert!(vmm.refuse("PUT", "/metrics", &settings).contains("Reinitialization"));
        vmm.start_instance();
        vmm.wait_for_line("guest: echo");
        // What the guest wrote may be here a moment before it is counted there.
        vmm.wait_for_counter("faultless_uart_write_total", vmm.console().len() as u64);
        flush(&vmm);
        let first = lines(&metrics).pop().unwrap();
        assert_eq!(
            (&first["id"], &first["properties"]["zone"]),
            (&json!("anonymous-instance"), &json!("north"))
        );
        assert!(first["utc_timestamp_ms"].as_u64().unwrap() > 0);
        assert_eq!(count(&first, "block_data", "read_bytes"), 1 << 20);
        assert_eq!(count(&first, "block_data", "read_count"), 16);
        // The guest waits for input, so it writes nothing in between: the first line has all since the guest's first step.
        for (group, name) in [("vcpu", "exit_io_out"), ("vcpu", "exit_mmio_write"), ("uart", "write")] {
            let total = vmm.counter(&format!("faultless_{group}_{name}_total"));
            let name = if group == "uart" { "write_count" } else { name };
            assert!(total > 5 && count(&first, group, name) == total, "{group}.{name} is {total} in {first}");
        }
        assert_eq!(count(&first, "entropy", "entropy_bytes"), 0);

        vmm.type_text("quit\n");
        vmm.wait_for_line("guest: echo");
        flush(&vmm);
        let second = lines(&metrics).pop().unwrap();
        assert_eq!(count(&second, "block_data", "read_bytes"), 2 << 20, "since the last line, not in all");
        assert_eq!(count(&second, "uart", "read_count"), 5);

        vmm.type_text("quit\n");
        vmm.ends_cleanly();
        let all = lines(&metrics);
        assert_eq!(all.len(), 3, "the end of the process is the third line");
        assert!(count(&all[2], "vcpu", "exit_io_out") > 0);
    });
}

#[test]
fn a_metrics_file_that_cannot_be_written_is_refused_by_name() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let message = vmm.refuse("PUT", "/metrics", &json!({ "metrics_path": "/no/such/folder/metrics" }));
        assert!(message.contains("/no/such/folder/metrics"), "{message}");
        vmm.grant("PUT", "/metrics", &json!({ "metrics_path": vmm.folder().join("metrics") }));
    });
}

#[test]
fn without_a_metrics_file_a_flush_is_no_error() {
    on_kvm_host(|| {
        let vmm = Vmm::booted("spin");
        let answer = vmm.request("PUT", "/actions", &json!({ "action_type": "FlushMetrics" }));
        assert_eq!(answer.status, 204, "{}", answer.fault_message());
    });
}

/// The head of the answer to a GET, and its body.
fn raw_get(vmm: &Vmm, path: &str) -> (String, String) {
    let mut stream = UnixStream::connect(vmm.client().path()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[test]
fn prometheus_is_told_totals_in_its_own_format() {
    on_kvm_host(|| {
        let mut vmm = Vmm::configured(&format!("disk-read {} 1 64 4 echo", mmio(0)));
        let (head, body) = raw_get(&vmm, "/metrics/prometheus");
        assert!(head.starts_with("HTTP/1.1 200 ") && body.ends_with("# EOF\n"), "{head}\n{body}");
        let disk = vmm.folder().join("disk");
        fs::write(&disk, vec![0; 1 << 20]).unwrap();
        vmm.drive("data", &disk, false, false);
        vmm.start_instance();
        vmm.wait_for_line("guest: echo");
        let (head, body) = raw_get(&vmm, "/metrics/prometheus");
        let content_type = "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert!(head.to_lowercase().contains(&content_type.to_lowercase()), "{head}");
        for line in [
            "# TYPE faultless_block_read_bytes counter",
            "faultless_block_read_bytes_total{drive=\"data\"} 1048576",
            "faultless_block_read_total{drive=\"data\"} 16",
        ] {
            assert!(body.lines().any(|found| found == line), "{line} in\n{body}");
        }
        let before = vmm.counter("faultless_vcpu_exit_io_out_total");
        vmm.type_text("more\n");
        vmm.wait_for_line("guest: echo more");
        assert!(vmm.counter("faultless_vcpu_exit_io_out_total") > before);
        assert!(vmm.counter("faultless_uart_read_total") >= 5);
    });
}

#[test]
fn output_that_nobody_reads_stops_neither_api_nor_guest() {
    on_kvm_host(|| {
        // The log goes there too, since nobody says otherwise: each request is a line of it.
        let mut vmm = Launch::new(&["--level", "Debug"]).with_api().start_unread();
        vmm.wait_for_api();
        vmm.machine(1, 64);
        vmm.boot_source(bare_metal(Entry::Linux64), None, &format!("{}tick", "hello ".repeat(100)));
        vmm.start_instance();
        (0..500).for_each(|_| assert_eq!(vmm.get("/machine-config")["mem_size_mib"], 64));
        let runs_on = |vmm: &Vmm| {
            let printed = "faultless_vcpu_exit_io_out_total";
            vmm.wait_for_counter(printed, vmm.counter(printed) + 100);
        };
        runs_on(&vmm);
        vmm.pause();
        assert_eq!(vmm.state(), "Paused");
        vmm.resume();
        runs_on(&vmm);
        vmm.signal("TERM");
        vmm.ends_cleanly();
    });
}

/// How many lines one place in the program logs, at a guest's pace, before it leaves some out.
const GUEST_PACED_LINES_MAX: usize = 10;

#[test]
fn a_guest_cannot_fill_the_log() {
    on_kvm_host(|| {
        let vmm = Vmm::configured(&format!("virtio-churn {} 1000000000", mmio(0)));
        vmm.entropy();
        vmm.start_instance();
        let deadline = Instant::now() + WAIT;
        while !vmm.log().contains("more like it, left out") {
            assert!(Instant::now() < deadline, "nothing was left out:\n{}", vmm.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = vmm.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("has stopped until")).collect();
        let until_note = lines.iter().position(|line| line.contains("left out")).unwrap();
        assert_eq!(until_note, GUEST_PACED_LINES_MAX, "{log}");
        assert!(vmm.counter("faultless_entropy_device_errors_total") > lines.len() as u64);
        assert_eq!(vmm.state(), "Running");
    });
}

fn log_to(vmm: &Vmm, path: &Path, level: &str) {
    let settings = json!({ "log_path": path, "level": level, "show_level": true, "show_log_origin": true });
    vmm.grant("PUT", "/logger", &settings);
}

#[test]
fn the_log_goes_where_it_is_told_and_holds_what_it_is_told() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let [errors, more] = ["errors", "more"].map(|name| vmm.folder().join(name));
        log_to(&vmm, &errors, "Error");
        vmm.grant("GET", "/version", &Value::Null);
        vmm.refuse("PUT", "/actions", &json!({ "action_type": "InstanceStart" }));
        log_to(&vmm, &more, "Info");
        vmm.grant("GET", "/version", &Value::Null);
        vmm.grant("PUT", "/logger", &json!({ "level": "Off" }));
        vmm.refuse("PUT", "/actions", &json!({ "action_type": "InstanceStart" }));

        let errors = fs::read_to_string(errors).unwrap();
        assert!(errors.lines().any(|line| line.contains(":ERROR:") && line.contains("/actions")), "{errors}");
        assert!(errors.lines().all(|line| !line.contains(":INFO:")), "{errors}");
        let more = fs::read_to_string(more).unwrap();
        assert!(more.lines().any(|line| line.contains(":INFO:") && line.contains("/version")), "{more}");
        assert!(more.lines().all(|line| !line.contains(":ERROR:")), "logged while it was off:\n{more}");
        assert!(more.lines().all(|line| line.contains("[anonymous-instance:")), "{more}");
        assert!(more.contains(".rs:"), "the origin is missing:\n{more}");
    });
}

#[test]
fn a_log_that_cannot_be_written_is_refused_by_name() {
    on_kvm_host(|| {
        let vmm = Vmm::start();
        let message = vmm.refuse("PUT", "/logger", &json!({ "log_path": "/no/such/folder/log" }));
        assert!(message.contains("/no/such/folder/log"), "{message}");
    });
}

#[test]
fn flags_say_where_log_and_metrics_go_and_who_speaks() {
    on_kvm_host(|| {
        let folder = tempfile::tempdir().unwrap();
        let metrics = folder.path().join("metrics");
        let flags = ["--id", "vm-7", "--level", "Debug", "--show-level", "--metrics-path"];
        let mut vmm = Vmm::start_with(&[&flags[..], &[metrics.to_str().unwrap()]].concat());
        assert_eq!(vmm.get("/")["id"], "vm-7");
        vmm.machine(1, 64);
        vmm.boot_source(bare_metal(Entry::Linux64), None, "hello exit");
        vmm.start_instance();
        vmm.ends_cleanly();
        assert!(vmm.log().contains("[vm-7:") && vmm.log().contains(":INFO]"), "{}", vmm.log());
        assert!(count(&lines(&metrics)[0], "uart", "write_count") > 0);
    });
}

#[test]
fn serial_output_goes_to_a_file_and_nowhere_else() {
    on_kvm_host(|| {
        let mut vmm = Vmm::configured("hello exit");
        let output = vmm.folder().join("serial");
        fs::write(&output, "kept\n").unwrap();
        vmm.grant("PUT", "/serial", &json!({ "serial_out_path": output }));
        vmm.start_instance();
        vmm.ends_cleanly();
        let written = fs::read_to_string(output).unwrap();
        // Behind it may be the start of what the guest says while its power goes off.
        let lines: Vec<_> = written.lines().collect();
        assert_eq!(lines[0], "kept");
        assert!(lines[1].starts_with("guest: hello from ring 3") && lines.len() <= 3, "{written}");
        assert_eq!(vmm.console(), "");
    });
}

#[test]
fn serial_output_past_its_limit_is_dropped_and_counted() {
    on_kvm_host(|| {
        let mut vmm = Vmm::configured("hello hello exit");
        let [output, metrics] = ["serial", "metrics"].map(|name| vmm.folder().join(name));
        let limit = json!({ "size": 10, "refill_time": 3_600_000, "one_time_burst": 4 });
        vmm.grant("PUT", "/serial", &json!({ "serial_out_path": output, "rate_limiter": limit }));
        vmm.grant("PUT", "/metrics", &json!({ "metrics_path": metrics }));
        vmm.start_instance();
        vmm.ends_cleanly();
        assert_eq!(fs::read_to_string(output).unwrap(), "guest: hello f");
        let end = lines(&metrics).pop().unwrap();
        assert_eq!(count(&end, "uart", "write_count"), 14);
        assert!(count(&end, "uart", "missed_write_count") > 50, "{}", end["uart"]);
    });
}
