//! The threads of a running VMM, by their names.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use super::{POLL_INTERVAL, Vmm, WAIT};

impl Vmm {
    /// The names of its threads, without those that KVM itself adds to a process that has a VM.
    pub fn threads(&self) -> BTreeSet<String> {
        self.tasks().into_iter().map(|(_, name)| name).filter(|name| !name.starts_with("kvm-")).collect()
    }

    /// Waits until the threads are these: a new one has its maker's name until it has run, and one that was joined is
    /// listed for a moment longer.
    pub fn wait_for_threads(&self, expected: &[&str]) {
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        let deadline = Instant::now() + WAIT;
        loop {
            let found = self.threads();
            if found == expected {
                return;
            }
            assert!(Instant::now() < deadline, "there are the threads {found:?}, not {expected:?}");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// The kernel's number for the thread of this name.
    pub fn thread_id(&self, name: &str) -> i32 {
        let found = self.tasks().into_iter().find(|(_, found)| found == name);
        found.unwrap_or_else(|| panic!("there is no thread {name}")).0
    }

    fn tasks(&self) -> Vec<(i32, String)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id())).into_iter().flatten().flatten();
        let task = |path: PathBuf| {
            let name = fs::read_to_string(path.join("comm")).ok()?;
            Some((path.file_name()?.to_str()?.parse().ok()?, name.trim().to_owned()))
        };
        tasks.filter_map(|entry| task(entry.path())).collect()
    }
}
