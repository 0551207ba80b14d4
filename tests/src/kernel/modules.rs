//! Which module files to load, and in which order.
//!
//! Debian's packages leave `modules.dep` to the installing machine's `depmod`, so dependencies are read where depmod
//! reads them: in each module's `.modinfo`, as `depends=a,b`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{KernelError, read};

/// A module, unpacked.
pub(crate) struct Module {
    /// Its name, with underscores, as `lsmod` prints it.
    pub(crate) name: String,
    /// The ELF object to hand to `insmod`.
    pub(crate) object: Vec<u8>,
}

/// `wanted` and their dependencies, each once and behind what it needs.
pub(super) fn in_load_order(
    folder: &Path,
    release: &str,
    wanted: &[&str],
) -> Result<Vec<Module>, KernelError> {
    let mut files = HashMap::new();
    find_files(&folder.join("kernel"), &mut files)?;
    let built_in = String::from_utf8_lossy(&read(&folder.join("modules.builtin"))?)
        .lines()
        .filter_map(|line| module_name(Path::new(line)))
        .collect();
    let mut order = Order { release, files, built_in, loaded: Vec::new() };
    wanted.iter().try_for_each(|name| order.add(&name.replace('-', "_")))?;
    Ok(order.loaded)
}

struct Order<'a> {
    release: &'a str,
    files: HashMap<String, PathBuf>,
    built_in: Vec<String>,
    loaded: Vec<Module>,
}

impl Order<'_> {
    fn add(&mut self, name: &str) -> Result<(), KernelError> {
        if self.built_in.iter().any(|built_in| built_in == name)
            || self.loaded.iter().any(|module| module.name == name)
        {
            return Ok(());
        }
        let missing = || KernelError::NoModule { release: self.release.to_owned(), module: name.to_owned() };
        let object = unpacked(self.files.get(name).ok_or_else(missing)?)?;
        // Dependencies among modules have no cycles: depmod refuses to index such a kernel.
        dependencies(&object).iter().try_for_each(|dependency| self.add(dependency))?;
        self.loaded.push(Module { name: name.to_owned(), object });
        Ok(())
    }
}

fn find_files(folder: &Path, files: &mut HashMap<String, PathBuf>) -> Result<(), KernelError> {
    let failed = |source| KernelError::Io { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            find_files(&entry.path(), files)?;
        } else if let Some(name) = module_name(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// `kvm_amd` for `…/kvm-amd.ko.xz`; nothing for a file that is no module.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (stem, suffix) = file.split_once(".ko")?;
    matches!(suffix, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

fn unpacked(path: &Path) -> Result<Vec<u8>, KernelError> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return read(path),
    };
    let failed = |reason| KernelError::Unpack { program, path: path.to_owned(), reason };
    let output =
        Command::new(program).arg("-dcq").arg(path).output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// What the object's `.modinfo` section says behind `depends=`; its strings end with a zero byte.
fn dependencies(object: &[u8]) -> Vec<String> {
    object
        .split(|byte| *byte == 0)
        .find_map(|text| text.strip_prefix(b"depends="))
        .map(|list| String::from_utf8_lossy(list).into_owned())
        .unwrap_or_default()
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_lsmod() {
        assert_eq!(module_name(Path::new("kernel/arch/x86/kvm/kvm-amd.ko.xz")).as_deref(), Some("kvm_amd"));
        assert_eq!(module_name(Path::new("ext4.ko")).as_deref(), Some("ext4"));
        assert_eq!(module_name(Path::new("modules.order")), None);
    }

    #[test]
    fn dependencies_load_first_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let module = |name: &str, depends: &str| {
            let path = folder.path().join("kernel").join(name);
            fs::write(path, format!("\x7fELF\0license=GPL\0depends={depends}\0")).unwrap();
        };
        fs::create_dir(folder.path().join("kernel")).unwrap();
        fs::write(folder.path().join("modules.builtin"), "kernel/lib/libcrc.ko\n").unwrap();
        module("top.ko", "left-one,right,libcrc");
        module("left-one.ko", "bottom");
        module("right.ko", "bottom");
        module("bottom.ko", "");
        let order = in_load_order(folder.path(), "6.0", &["top", "libcrc"]).unwrap();
        let names: Vec<_> = order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["bottom", "left_one", "right", "top"]);
        assert!(matches!(
            in_load_order(folder.path(), "6.0", &["nowhere"]),
            Err(KernelError::NoModule { module, .. }) if module == "nowhere"
        ));
    }
}
