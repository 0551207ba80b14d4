//! Files that are made once per machine: kernels, boot images, disks.
//!
//! Test processes run side by side, so a file is made under a lock, next to its place, and then renamed into it: what
//! is in its place is always whole.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a cached file could not be made.
#[derive(Debug, Error)]
pub enum CacheError {
    /// Neither of the variables that tell where the cache is has a value.
    #[error("neither FAULTLESS_CACHE, XDG_CACHE_HOME nor HOME is set, so there is no place for the cache")]
    NoPlace,
    /// The cache cannot be written, or a file in it not be read.
    #[error("{path}: {source}; set FAULTLESS_CACHE to a folder that can be written")]
    Io {
        /// What could not be read or written.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// The cache folder: `$FAULTLESS_CACHE`, else `faultless` in `$XDG_CACHE_HOME` or `~/.cache`.
pub fn folder() -> Result<PathBuf, CacheError> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("FAULTLESS_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("faultless")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/faultless")))
        .ok_or(CacheError::NoPlace)
}

/// The path of `name` in the cache, made by `build` if it is not there yet.
///
/// `build` gets the path to write to. `name` must change with what goes into the file, for nothing else makes it anew.
pub fn build_once<E>(name: &str, build: impl FnOnce(&Path) -> Result<(), E>) -> Result<PathBuf, E>
where
    E: From<CacheError>,
{
    let place = folder()?.join(name);
    if place.exists() {
        return Ok(place);
    }
    let parent = place.parent().expect("the name is below the cache folder");
    fs::create_dir_all(parent).map_err(|source| CacheError::Io { path: parent.to_owned(), source })?;
    let _lock = lock(&parent.join(".lock"))?;
    if !place.exists() {
        let aside = tempfile::tempdir_in(parent)
            .map_err(|source| CacheError::Io { path: parent.to_owned(), source })?;
        let unfinished = aside.path().join("unfinished");
        build(&unfinished)?;
        fs::rename(&unfinished, &place).map_err(|source| CacheError::Io { path: place.clone(), source })?;
    }
    Ok(place)
}

/// Waits for a lock file, which is free again when the returned file is closed.
fn lock(path: &Path) -> Result<File, CacheError> {
    let failed = |source| CacheError::Io { path: path.to_owned(), source };
    let file = File::options().create(true).append(true).open(path).map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(file)
}

/// Waits for one of `count` places that are shared by all processes of this user; the file holds it.
pub(crate) fn take_slot(name: &str, count: usize) -> Result<File, CacheError> {
    let locks = folder()?.join("slots");
    fs::create_dir_all(&locks).map_err(|source| CacheError::Io { path: locks.clone(), source })?;
    let path = |index: usize| locks.join(format!("{name}-{index}"));
    for index in 0..count {
        let free = File::options().create(true).append(true).open(path(index)).ok();
        if let Some(file) = free.filter(|file| file.try_lock().is_ok()) {
            return Ok(file);
        }
    }
    let process = usize::try_from(std::process::id()).expect("a usize is at least 32 bits here");
    lock(&path(process % count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_built_once_and_a_failed_build_leaves_nothing() {
        let name = format!("test/{}", std::process::id());
        let failed = build_once::<CacheError>(&name, |_| Err(CacheError::NoPlace));
        assert!(matches!(failed, Err(CacheError::NoPlace)));
        let place = build_once::<CacheError>(&name, |path| {
            fs::write(path, "once").map_err(|source| CacheError::Io { path: path.to_owned(), source })
        });
        let again = build_once::<CacheError>(&name, |_| panic!("it is there already")).unwrap();
        assert_eq!(place.unwrap(), again);
        assert_eq!(fs::read_to_string(&again).unwrap(), "once");
        fs::remove_file(again).unwrap();
    }
}
