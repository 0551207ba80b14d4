//! A user who may not use KVM or userfaultfd is told so, and what mends it.
//!
//! The devices are covered by a file that only root may open, in a mount namespace of the program's own, so that the
//! test does not depend on how they are set up here.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::client::{Client, Response};
use serde_json::{Value, json};
use tests::guest::{Entry, bare_metal};
use tests::host::on_kvm_host;
use tests::vmm::{WAIT, binary};

const NOBODY: u32 = 65_534;
const COVER: &str = r#"
    for device in /dev/kvm /dev/userfaultfd; do
        [ ! -e $device ] || mount --bind "$COVER" $device || exit 99
    done
    exec "$@"
"#;

/// A folder that anybody can use, with the program and a kernel in it.
struct Stage {
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stage = Self { folder };
        fs::copy(binary(), stage.path("faultless")).unwrap();
        fs::copy(bare_metal(Entry::Linux64), stage.path("kernel")).unwrap();
        fs::write(stage.path("cover"), "").unwrap();
        fs::set_permissions(stage.path("cover"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(stage.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program without permission for the devices: as nobody, without groups.
    fn without_permission(&self) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", COVER, "sh"]);
        command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(self.path("faultless")).env("COVER", self.path("cover"));
        command.current_dir(self.folder.path());
        command
    }
}

/// Nobody but root can become another user. Without that, only that the right to open the device is needed is known.
fn can_become_nobody() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!(
            "not run as root, so nothing was checked but the program's own answer to a user without KVM"
        );
    }
    is_root
}

fn report(stage: &Stage) -> (Option<i32>, Value) {
    let output = stage.without_permission().args(["doctor", "--json"]).output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

fn finding<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["findings"].as_array().unwrap().iter().find(|finding| finding["name"] == name).unwrap()
}

#[test]
fn doctor_says_what_is_not_permitted_and_what_mends_it() {
    on_kvm_host(|| {
        if !can_become_nobody() {
            return;
        }
        let stage = Stage::new();
        let (status, report) = report(&stage);
        assert_eq!((status, &report["can_run_vm"]), (Some(1), &json!(false)));
        let kvm = finding(&report, "kvm");
        assert_eq!((&kvm["ok"], &kvm["weight"]), (&json!(false), &json!("required")));
        assert!(kvm["detail"].as_str().unwrap().contains("no permission to use /dev/kvm"), "{kvm}");
        assert!(kvm["fix"].as_str().unwrap().contains("usermod -aG kvm"), "{kvm}");
        let anybody_may = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap_or_default();
        if anybody_may.trim() == "0" {
            let uffd = finding(&report, "uffd");
            assert_eq!(uffd["ok"], false, "{uffd}");
            assert!(uffd["fix"].as_str().unwrap().contains("sysctl vm.unprivileged_userfaultfd=1"), "{uffd}");
        } else {
            println!("anybody may use userfaultfd on this host, so its refusal was not checked");
        }
        let table = stage.without_permission().arg("doctor").output().unwrap();
        let table = String::from_utf8(table.stdout).unwrap();
        assert!(table.contains("FAIL  kvm ") && table.contains("mend: join its group"), "{table}");
    });
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn request(socket: &Path, method: &str, path: &str, body: &Value) -> Response {
    Client::new(socket).raw(method, path, Some(body.to_string().as_bytes())).unwrap()
}

#[test]
fn a_start_without_permission_is_refused_with_what_mends_it() {
    on_kvm_host(|| {
        if !can_become_nobody() {
            return;
        }
        let stage = Stage::new();
        let sockets = stage.path("sockets");
        fs::create_dir(&sockets).unwrap();
        chown(&sockets, Some(NOBODY), Some(NOBODY)).unwrap();
        let socket = sockets.join("api.socket");
        let mut command = stage.without_permission();
        command.arg("--api-sock").arg(&socket).stdin(Stdio::null()).stdout(Stdio::null());
        let mut vmm = Killed(command.spawn().unwrap());
        let deadline = Instant::now() + WAIT;
        while Client::new(&socket).raw("GET", "/", None).is_err() {
            assert!(
                Instant::now() < deadline && vmm.0.try_wait().unwrap().is_none(),
                "the API does not answer"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        let boot =
            request(&socket, "PUT", "/boot-source", &json!({ "kernel_image_path": stage.path("kernel") }));
        assert!(boot.is_success(), "{}", boot.fault_message());
        let start = request(&socket, "PUT", "/actions", &json!({ "action_type": "InstanceStart" }));
        assert_eq!(start.status, 400);
        let message = start.fault_message();
        assert!(
            message.contains("no permission to use /dev/kvm") && message.contains("usermod -aG kvm"),
            "{message}"
        );
        let info = Client::new(&socket).raw("GET", "/", None).unwrap().json::<Value>().unwrap();
        assert_eq!(info["state"], "Not started");
    });
}

#[test]
fn a_run_without_permission_ends_with_what_mends_it() {
    on_kvm_host(|| {
        if !can_become_nobody() {
            return;
        }
        let stage = Stage::new();
        let mut command = stage.without_permission();
        let output = command.args(["run", "--kernel", "kernel"]).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("usermod -aG kvm"), "{said}");
    });
}
