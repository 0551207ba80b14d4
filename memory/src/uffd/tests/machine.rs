//! What tests change of the whole machine: one test at a time, and put back whatever becomes of it.
//!
//! Each test is a process of its own to the runner, so the turn is a lock on a file.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use crate::uffd::{Feature, probe};

/// Whether the kernel has `feature`; where not, the output says that what is tested is what it does instead.
pub(crate) fn kernel_has(feature: Feature) -> bool {
    let has = probe().unwrap().has(feature);
    if !has {
        println!("this kernel has no {}: what it does instead is tested", feature.name);
    }
    has
}

/// The turn of one test.
pub(crate) struct Turn {
    _lock: File,
}

impl Turn {
    pub(crate) fn take() -> Self {
        let lock = File::create(std::env::temp_dir().join("faultless-test-machine.lock")).unwrap();
        lock.lock().unwrap();
        Self { _lock: lock }
    }
}

/// A setting under `/proc/sys` or `/sys` that is put back.
pub(crate) struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    /// Writes `value`, of which `_turn` shows that nobody else does.
    pub(crate) fn set(_turn: &Turn, path: &str, value: &str) -> io::Result<Self> {
        let path = PathBuf::from(path);
        let before = fs::read_to_string(&path)?;
        fs::write(&path, value)?;
        Ok(Self { path, before })
    }

    fn put_back_to(mut self, before: String) -> Self {
        self.before = before;
        self
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.before) {
            eprintln!("{} cannot be put back to {}: {error}", self.path.display(), self.before.trim());
        }
    }
}

/// Huge pages of 2 MiB, `count` of them free for a test.
pub(crate) struct HugePages {
    _setting: Option<Setting>,
    _turn: Turn,
}

impl HugePages {
    /// Takes what the pool has, or makes it larger. `None`, and why on the output, where the machine gives none.
    pub(crate) fn take(count: u64) -> Option<Self> {
        let turn = Turn::take();
        let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB";
        let number = |name: &str| {
            fs::read_to_string(format!("{pool}/{name}")).map_or(0, |text| text.trim().parse::<u64>().unwrap())
        };
        // Those that are free and promised to a mapping are not to be had.
        let free = || number("free_hugepages").saturating_sub(number("resv_hugepages"));
        if free() >= count {
            return Some(Self { _setting: None, _turn: turn });
        }
        // Pages that the test before this has not given back yet are counted, and go by themselves: they must not be
        // made lasting when the number is put back.
        let all = number("nr_hugepages");
        let lasting = all - number("surplus_hugepages");
        let setting = Setting::set(&turn, &format!("{pool}/nr_hugepages"), &(all + count).to_string());
        match setting.map(|setting| setting.put_back_to(lasting.to_string())) {
            Ok(setting) if free() >= count => return Some(Self { _setting: Some(setting), _turn: turn }),
            Ok(_) => println!("NOT TESTED: the machine has no {count} huge pages of 2 MiB in one piece"),
            Err(error) => println!("NOT TESTED: huge pages cannot be reserved: {error}"),
        }
        None
    }
}
