//! Where cargo has put what it built: the test executables of other crates.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// The executable of a library's own tests. It is there already where the whole workspace's tests were built, and is
/// built now where not.
pub fn unit_tests_of(library: &str) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // The same words as the runner's: with others, features would differ, and all be built again.
    let output = Command::new(cargo)
        .args(["test", "--workspace", "--no-run", "--offline", "--message-format=json"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs this, so it can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut artifacts = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let found = artifacts.find_map(|artifact| {
        let is_it = artifact["target"]["name"] == library
            && artifact["target"]["kind"][0] == "lib"
            && artifact["profile"]["test"] == true;
        artifact["executable"].as_str().filter(|_| is_it).map(PathBuf::from)
    });
    found.unwrap_or_else(|| panic!("cargo built no tests of {library}"))
}
