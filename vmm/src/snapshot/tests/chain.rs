//! What a diff lies over: where it was, or beside the diff.

use std::fs;
use std::path::PathBuf;

use tempfile::tempdir;

use super::super::load::{LoadError, chain};
use super::*;

/// Writes the files of `saved`, the machine `id`, into `folder`.
fn write(saved: &Saved, id: u8, folder: &Path) {
    let [state, memory] = paths(id, folder);
    fs::write(state, saved.encode().finish().unwrap()).unwrap();
    fs::write(memory, "").unwrap();
}

/// The memory files of the machine `id` in `folder`, the lowest first.
fn files_of(saved: &Saved, id: u8, folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let files = chain(saved, &paths(id, folder)[1])?;
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

fn memories(ids: impl IntoIterator<Item = u8>, folder: &Path) -> Vec<PathBuf> {
    ids.into_iter().map(|id| paths(id, folder)[1].clone()).collect()
}

#[test]
fn what_is_below_is_found_where_it_was() {
    let (one, two) = (tempdir().unwrap(), tempdir().unwrap());
    let (below, above) = (one.path(), two.path());
    assert_eq!(files_of(&machine(1), 1, below).unwrap(), memories([1], below));
    write(&machine(1), 1, below);
    write(&diff(2, 1, below), 2, below);
    let expected = [memories([1, 2], below), memories([3], above)].concat();
    assert_eq!(files_of(&diff(3, 2, below), 3, above).unwrap(), expected);
}

#[test]
fn what_was_moved_together_is_found_beside() {
    let (one, two) = (tempdir().unwrap(), tempdir().unwrap());
    let (before, now) = (one.path(), two.path());
    write(&machine(1), 1, now);
    write(&diff(2, 1, before), 2, now);
    // What is where it was by now is another snapshot.
    write(&machine(9), 1, before);
    assert_eq!(files_of(&diff(3, 2, before), 3, now).unwrap(), memories([1, 2, 3], now));
    // What was kept when its place was taken is found under its id.
    let kept = now.join(format!(".1.memory.{}.kept", SnapshotId([1; 16])));
    fs::write(&kept, "").unwrap();
    let expected = [vec![kept], memories([2, 3], now)].concat();
    assert_eq!(files_of(&diff(3, 2, before), 3, now).unwrap(), expected);
}

#[test]
fn what_is_not_there_is_named() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    write(&diff(2, 1, folder), 2, folder);
    match files_of(&diff(3, 2, folder), 3, folder) {
        Err(LoadError::NoParent { id, path }) => {
            assert_eq!((id, path), (SnapshotId([1; 16]).to_string(), paths(1, folder)[0].clone()));
        }
        other => panic!("{other:?}"),
    }
    fs::write(&paths(1, folder)[0], "no snapshot").unwrap();
    assert!(matches!(files_of(&diff(3, 2, folder), 3, folder), Err(LoadError::NoParent { .. })));
}

#[test]
fn a_loop_is_found_wherever_it_begins() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    write(&diff(1, 2, folder), 1, folder);
    write(&diff(2, 1, folder), 2, folder);
    assert!(matches!(files_of(&diff(1, 2, folder), 1, folder), Err(LoadError::Loop { .. })));
    assert!(matches!(files_of(&diff(3, 2, folder), 3, folder), Err(LoadError::Loop { .. })));
    assert!(matches!(files_of(&diff(4, 4, folder), 4, folder), Err(LoadError::Loop { .. })));
}

#[test]
fn sixty_four_files_are_not_too_deep_and_one_more_is() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    write(&machine(1), 1, folder);
    (2..=64).for_each(|id| write(&diff(id, id - 1, folder), id, folder));
    assert_eq!(files_of(&diff(64, 63, folder), 64, folder).unwrap(), memories(1..=64, folder));
    assert!(matches!(files_of(&diff(65, 64, folder), 65, folder), Err(LoadError::Deep)));
}
