//! One file that is written aside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::tempdir;

use super::*;

/// What is in `folder`.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_replaces_the_old_one_when_it_is_committed() {
    let folder = tempdir().unwrap();
    let target = folder.path().join("state");
    fs::write(&target, "old").unwrap();
    let aside = Aside::create(&target).unwrap();
    aside.write_all(b"new").unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"old");
    assert_eq!(names(folder.path()), [".state.partial", "state"]);
    aside.commit().unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"new");
    assert_eq!(names(folder.path()), ["state"]);
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_is_not_committed_leaves_nothing() {
    let folder = tempdir().unwrap();
    let target = folder.path().join("state");
    let aside = Aside::create(&target).unwrap();
    aside.write_all(b"new").unwrap();
    drop(aside);
    assert!(names(folder.path()).is_empty());
}

#[test]
fn a_leftover_of_the_dead_is_removed_and_the_living_are_left_alone() {
    let folder = tempdir().unwrap();
    let target = folder.path().join("state");
    fs::write(folder.path().join(".state.partial"), "left").unwrap();
    let aside = Aside::create(&target).unwrap();
    let error = Aside::create(&target).unwrap_err();
    assert!(matches!(error, AsideError::InUse { .. }), "{error}");
    aside.write_all(b"new").unwrap();
    aside.commit().unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"new");
}

#[test]
fn of_many_that_find_a_leftover_one_writes() {
    let folder = tempdir().unwrap();
    let target = folder.path().join("state");
    for _ in 0..50 {
        fs::write(folder.path().join(".state.partial"), "left").unwrap();
        let start = std::sync::Barrier::new(4);
        let claim = || {
            start.wait();
            Aside::create(&target)
        };
        let claims: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(claim)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let won: Vec<_> = claims.iter().flatten().collect();
        assert!(won.len() <= 1, "{claims:?}");
        for aside in won {
            aside.write_all(b"mine").unwrap();
            assert_eq!(fs::read(folder.path().join(".state.partial")).unwrap(), b"mine");
        }
        let refused = claims.iter().filter_map(|claim| claim.as_ref().err());
        assert!(refused.into_iter().all(|error| matches!(error, AsideError::InUse { .. })));
    }
}

#[test]
fn what_is_no_file_is_not_replaced() {
    let folder = tempdir().unwrap();
    for path in [folder.path(), Path::new("/dev/null")] {
        assert!(matches!(Aside::create(path), Err(AsideError::NotAFile { .. })));
    }
    for path in [PathBuf::from("/"), "..".into(), folder.path().join("a".repeat(201))] {
        assert!(matches!(Aside::create(&path), Err(AsideError::Name { .. })), "{path:?}");
    }
    let error = Aside::create(&folder.path().join("missing/state")).unwrap_err();
    assert!(error.to_string().contains("check that its folder is there"), "{error}");
    let target = folder.path().join("target");
    fs::write(&target, "precious").unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    Aside::create(&link).unwrap().commit().unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    std::os::unix::fs::symlink(&target, folder.path().join(".other.partial")).unwrap();
    let other = Aside::create(&folder.path().join("other"));
    assert!(matches!(other, Err(AsideError::Host { .. })), "a link is not followed: {other:?}");
    assert_eq!(fs::read(&target).unwrap(), b"precious");
}
