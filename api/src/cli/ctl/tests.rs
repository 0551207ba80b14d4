//! `ctl` against an API server: what is asked, and what is printed.

use super::*;
use crate::cli::Invocation;
use crate::server::{self, Limits};
use crate::types::{InstanceInfo, InstanceState};
use crate::{Fault, Reply, Request, Service};
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;

/// Answers a few requests and remembers all.
#[derive(Default)]
struct Recorder(Mutex<Vec<Request>>);

impl Service for Recorder {
    async fn call(&self, request: Request) -> Result<Reply, Fault> {
        self.0.lock().unwrap().push(request.clone());
        match request {
            Request::GetInstanceInfo => Ok(Reply::InstanceInfo(InstanceInfo {
                failure: None,
                handler_failure: None,
                app_name: "Faultless".to_owned(),
                id: "i-1".to_owned(),
                state: InstanceState::Paused,
                vmm_version: "0.1.0".to_owned(),
            })),
            Request::GetPrometheus => Ok(Reply::Prometheus("# EOF\n".to_owned())),
            Request::PutAction(_) => Err(Fault::bad_request("Not now.")),
            _ => Ok(Reply::Empty),
        }
    }
}

/// Runs one `faultless ctl` command line; gives back what was asked, what was printed, and how it ended.
fn ctl(words: &[&str]) -> (Vec<Request>, String, Result<(), CtlError>) {
    let folder = tempfile::tempdir().unwrap();
    let socket = server::bind(folder.path().join("api.sock")).unwrap();
    let path = socket.path().to_str().unwrap().to_owned();
    let recorder = Arc::new(Recorder::default());
    let (shutdown, stopped) = oneshot::channel::<()>();
    let service = recorder.clone();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stopped = async { stopped.await.unwrap_or_default() };
            server::serve(socket.listener().unwrap(), service, Limits::default(), stopped).await;
        });
    });
    let words = [&["faultless", "ctl", "--api-sock", &path], words].concat();
    let words = words.into_iter().map(Into::into);
    let Ok(Invocation::Ctl(args)) = Invocation::parse(words) else { panic!("not a ctl command") };
    let mut out = Vec::new();
    let result = execute(&args, &mut out);
    drop(shutdown);
    server.join().unwrap();
    let asked = recorder.0.lock().unwrap().clone();
    (asked, String::from_utf8(out).unwrap(), result)
}

#[test]
fn a_table_for_people_and_json_for_programs() {
    let (asked, table, result) = ctl(&["info"]);
    assert!(result.is_ok());
    assert_eq!(asked, [Request::GetInstanceInfo]);
    assert_eq!(table, "app_name     Faultless\nid           i-1\nstate        Paused\nvmm_version  0.1.0\n");
    let (_, json, _) = ctl(&["info", "--json"]);
    assert_eq!(serde_json::from_str::<InstanceInfo>(&json).unwrap().id, "i-1");
}

#[test]
fn nothing_is_printed_where_nothing_is_answered() {
    let (asked, printed, result) = ctl(&["pause"]);
    assert!(result.is_ok() && printed.is_empty());
    assert_eq!(asked, [Request::PatchVm(crate::types::VmState::Paused)]);
}

#[test]
fn metrics_for_scraping_are_printed_as_they_are() {
    assert_eq!(ctl(&["prometheus"]).1, "# EOF\n");
}

#[test]
fn a_refusal_is_an_error_and_its_body_is_printed_for_programs() {
    let (_, printed, result) = ctl(&["start"]);
    assert_eq!(printed, "");
    assert_eq!(result.unwrap_err().to_string(), "refused with status 400: Not now.");
    let (_, printed, result) = ctl(&["--json", "start"]);
    assert!(printed.contains("\"fault_message\": \"Not now.\"") && result.is_err());
}

#[test]
fn raw_requests_go_out_as_they_are() {
    let (asked, _, result) = ctl(&["raw", "PUT", "/entropy", "{}"]);
    assert!(result.is_ok() && asked.len() == 1);
    let (asked, _, result) = ctl(&["raw", "GET", "/nonsense"]);
    assert!(result.unwrap_err().to_string().contains("GET nonsense") && asked.is_empty());
}

#[test]
fn every_operation_asks_for_something_the_server_accepts() {
    for words in [
        &["version"][..],
        &["config"],
        &["boot-source", "vmlinux", "--initrd", "i", "--cmdline", "quiet"],
        &["machine-config", "get"],
        &["machine-config", "set", "--cpus", "2", "--memory", "1G", "--huge-pages", "2m"],
        &["machine-config", "patch", "--memory", "256M"],
        &[
            "drive",
            "add",
            "root",
            "r.ext4",
            "--root",
            "--io-engine",
            "async",
            "--bandwidth",
            "1048576/1000/5",
        ],
        &["drive", "patch", "root", "--path", "other.ext4"],
        &["entropy", "--ops", "10/1000"],
        &["serial", "--out-path", "console.log", "--limit", "100/1000"],
        &["logger", "--path", "log", "--level", "debug", "--show-level", "true"],
        &["metrics", "metrics.json"],
        &["resume"],
    ] {
        let (asked, _, result) = ctl(words);
        assert!(result.is_ok(), "{words:?}: {result:?}");
        assert_eq!(asked.len(), 1, "{words:?}");
    }
    assert_eq!(ctl(&["ctrl-alt-del"]).0.len(), 1);
    assert_eq!(ctl(&["flush-metrics"]).0.len(), 1);
}

#[test]
fn a_snapshot_is_created_and_loaded_with_what_was_written() {
    use crate::types::{MemBackendType, SnapshotCreate, SnapshotType};
    let (asked, _, result) = ctl(&["snapshot", "create", "s", "m", "--diff", "--live"]);
    assert!(result.is_ok());
    let (snapshot_path, mem_file_path) = ("s".to_owned(), "m".to_owned());
    let expected =
        SnapshotCreate { snapshot_type: SnapshotType::Diff, snapshot_path, mem_file_path, live: true };
    assert_eq!(asked, [Request::CreateSnapshot(expected)]);
    let load = |words: &[&str]| {
        let (asked, ..) = ctl(&[&["snapshot", "load", "s", "m"], words].concat());
        let [Request::LoadSnapshot(load)] = &asked[..] else { panic!("{asked:?}") };
        load.clone()
    };
    let plain = load(&[]);
    assert_eq!(plain.backend().unwrap().backend_type, MemBackendType::Lazy, "ours is the default");
    assert!(plain.lazy.is_none() && !plain.resume_vm && plain.validate().is_ok());
    let full = load(&["--resume", "--drive", "root=/d=1", "--fill-mib-s", "0", "--no-working-set"]);
    assert!(full.resume_vm);
    assert_eq!(full.drive_overrides[0].path_on_host, "/d=1");
    let lazy = full.lazy.unwrap();
    assert_eq!((lazy.fill_mib_s, lazy.working_set), (Some(0), Some(false)));
    assert_eq!(load(&["--backend", "uffd"]).backend().unwrap().backend_type, MemBackendType::Uffd);
    let words = ["faultless", "ctl", "snapshot", "load", "s", "m", "--drive", "root"].map(Into::into);
    assert!(Invocation::parse(words).unwrap_err().text.contains("ID=PATH"));
}
