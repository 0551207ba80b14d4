//! Huge pages of 2 MiB for a test: the pool is larger while this is held.

use std::fs::{self, File};
use std::path::PathBuf;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const COUNT: &str = "nr_hugepages";

/// Huge pages that a test may take.
pub struct HugePages {
    before: u64,
    /// Other tests change the pool, too, each in its turn.
    _turn: File,
}

impl HugePages {
    /// Makes the pool larger by `count`; nothing where the machine does not let us, or has not so many in one piece.
    pub fn reserve(count: u64) -> Option<Self> {
        let turn = File::create(std::env::temp_dir().join("faultless-test-machine.lock")).ok()?;
        turn.lock().ok()?;
        let all = number(COUNT)?;
        // Pages that somebody is about to give back go by themselves.
        let reserved = Self { before: all - number("surplus_hugepages")?, _turn: turn };
        fs::write(path(COUNT), (all + count).to_string()).ok()?;
        Some(reserved).filter(|_| number(COUNT).is_some_and(|now| now >= all + count))
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(error) = fs::write(path(COUNT), self.before.to_string()) {
            eprintln!("{POOL}/{COUNT} cannot be put back to {}: {error}", self.before);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    fs::read_to_string(path(name)).ok()?.trim().parse().ok()
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(POOL).join(name)
}
