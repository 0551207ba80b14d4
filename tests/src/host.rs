//! Where a test's body runs: on this machine, if its KVM can do what the test needs, or else in the KVM host lab.
//!
//! ```text
//!   #[test] fn name()                 this machine's KVM can ─▶ body(), here
//!      └─ on_linux_host(body) ──┤
//!                                     it cannot ─▶ Lab: this executable again, "--exact name"
//!                                                    └─ name() ─ on_linux_host(body) ─▶ body(), there
//! ```
//!
//! The test names no place. `FAULTLESS_TEST_HOST=own` or `=lab` chooses one by hand.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

mod huge_pages;

use crate::guest::{LinuxGuest, SERIES};
use crate::lab::{EXCHANGE, LAB_VARIABLE, Lab, LabCommand};
use crate::vmm;
pub use huge_pages::HugePages;

const CHOICE_VARIABLE: &str = "FAULTLESS_TEST_HOST";
/// Left in the exchange folder by a body that was reached. A test executable that finds no test by a name says that
/// all went well, so its status alone proves nothing.
const REACHED: &str = "reached";
/// How long one test may take in the lab, where it is to do more than usual; in seconds.
const TIMEOUT_VARIABLE: &str = "FAULTLESS_LAB_TIMEOUT_S";
/// How long many tests may take in the lab, which is some twenty times slower: less than the runner gives one test.
const TESTS_IN_LAB_TIMEOUT: Duration = Duration::from_secs(540);

/// A place to run virtual machines in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// This machine, and its own KVM.
    Own,
    /// The KVM host lab, and this process is outside it.
    Lab,
}

/// Runs `body` where a stock Linux guest boots. To be the whole of a `#[test]` function.
pub fn on_linux_host<F: FnOnce()>(body: F) {
    run_at(place_for_linux(), body);
}

/// Runs `body` where there is any KVM: the bare-metal guest needs no more. To be the whole of a `#[test]` function.
pub fn on_kvm_host<F: FnOnce()>(body: F) {
    run_at(place_for_any_guest(), body);
}

/// Runs `body` in the lab, wherever this is: for what needs the same machine everywhere. To be the whole of a `#[test]`
/// function.
pub fn in_lab<F: FnOnce()>(body: F) {
    let is_there = std::env::var_os(LAB_VARIABLE).is_some();
    run_at(if is_there { Place::Own } else { Place::Lab }, body);
}

/// Where a stock Linux guest boots.
pub fn place_for_linux() -> Place {
    chosen().unwrap_or_else(|| if can_run_linux() { Place::Own } else { Place::Lab })
}

/// Where the bare-metal guest boots.
pub fn place_for_any_guest() -> Place {
    chosen().unwrap_or_else(|| if can_open_kvm() { Place::Own } else { Place::Lab })
}

/// Says what this process runs on, for people.
pub fn describe() -> String {
    std::env::var(LAB_VARIABLE).unwrap_or_else(|_| {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        format!("own KVM ({}, Linux {})", std::env::consts::ARCH, release.trim())
    })
}

/// What has been decided already: in the lab, or by the developer.
fn chosen() -> Option<Place> {
    if std::env::var_os(LAB_VARIABLE).is_some() {
        return Some(Place::Own);
    }
    match std::env::var(CHOICE_VARIABLE).ok()?.as_str() {
        "own" => Some(Place::Own),
        "lab" => Some(Place::Lab),
        other => panic!("{CHOICE_VARIABLE}={other}: say own or lab"),
    }
}

fn can_open_kvm() -> bool {
    File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Asks the program under test, which tries; its word counts because users get the same one.
fn can_run_linux() -> bool {
    let output = Command::new(vmm::binary()).args(["doctor", "--json"]).output();
    let said =
        output.ok().and_then(|output| serde_json::from_slice::<serde_json::Value>(&output.stdout).ok());
    let said =
        said.as_ref().and_then(|report| report.get("can_run_linux")).and_then(serde_json::Value::as_bool);
    said.unwrap_or_else(|| can_open_kvm() && !Path::new("/sys/module/kvm_pvm").exists())
}

fn run_at<F: FnOnce()>(place: Place, body: F) {
    match place {
        Place::Own => {
            println!("on {}", describe());
            if std::env::var_os(LAB_VARIABLE).is_some() {
                let mark = Path::new(EXCHANGE).join(REACHED);
                fs::write(mark, "").expect("the exchange folder can be written");
            }
            body();
        }
        Place::Lab => rerun_in_lab(&test_name::<F>()),
    }
}

/// Runs one test of this executable in the lab, and fails if it fails there.
fn rerun_in_lab(test: &str) {
    // What is fetched or built is made here: there, it would be lost.
    for series in SERIES {
        LinuxGuest::prepare(series).unwrap_or_else(|error| panic!("guest kernel {series}: {error}"));
    }
    let mut lab = Lab::default();
    if let Ok(seconds) = std::env::var(TIMEOUT_VARIABLE) {
        lab = lab.timeout(Duration::from_secs(seconds.parse().expect("a number of seconds")));
    }
    println!("{test}: in the {}", lab.describe());
    let executable = std::env::current_exe().expect("a running program has a path");
    let command = LabCommand::new(executable).args([test, "--exact", "--nocapture", "--include-ignored"]);
    let exit = lab.run(&command, &mut io::stdout()).unwrap_or_else(|error| panic!("{error}"));
    println!("{test}: {:.1} s in the lab", exit.elapsed.as_secs_f32());
    assert_eq!(exit.status, 0, "{test} failed in the lab; its output is above");
    assert!(
        exit.exchange.path().join(REACHED).exists(),
        "{test} was not found in the lab: no test has this name"
    );
}

/// Runs an executable's tests, all that `arguments` leave, one after the other on the lab's kernel of this series, and
/// fails if one fails there, or fewer than `tests_min` are found. Only for the test process outside the lab.
pub fn run_tests_in_lab(series: &str, executable: &Path, arguments: &[&str], tests_min: usize) {
    let lab = Lab::default().kernel_series(series).timeout(TESTS_IN_LAB_TIMEOUT);
    println!("{}: in the {}", executable.display(), lab.describe());
    let command = LabCommand::new(executable).args(arguments).args(["--test-threads=1", "--nocapture"]);
    let mut printed = Tee(Vec::new());
    let exit = lab.run(&command, &mut printed).unwrap_or_else(|error| panic!("{error}"));
    let printed = String::from_utf8_lossy(&printed.0);
    println!("{:.1} s in the lab", exit.elapsed.as_secs_f32());
    assert_eq!(exit.status, 0, "a test failed in the {}; its output is above", lab.describe());
    let said = printed.lines().rfind(|line| line.starts_with("test result: ok. ")).unwrap_or_default();
    let passed: usize = said.split(' ').nth(3).and_then(|number| number.parse().ok()).unwrap_or(0);
    assert!(passed >= tests_min, "only {passed} tests were found in the lab");
}

/// Shows what is written, and keeps it.
struct Tee(Vec<u8>);

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        io::stdout().write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// The name, as the test executable knows it, of the `#[test]` function that `F` is a closure of.
///
/// It comes from the closure's type: `crate::module::name::{{closure}}`. Should a compiler spell that otherwise, the
/// test fails for not having been reached.
fn test_name<F>() -> String {
    let path = std::any::type_name::<F>();
    let path = path.strip_suffix("::{{closure}}").unwrap_or(path);
    path.split_once("::").map_or(path, |(_crate, name)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of<F: FnOnce()>(_body: F) -> String {
        test_name::<F>()
    }

    #[test]
    fn a_test_is_known_by_its_body() {
        assert_eq!(name_of(|| {}), "host::tests::a_test_is_known_by_its_body");
    }
}
