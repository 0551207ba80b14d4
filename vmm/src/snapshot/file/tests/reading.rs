//! Reading what a path names.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::Path;

use tempfile::tempdir;

use super::*;
use crate::error::chain;

fn refusal(path: &Path) -> String {
    chain(&read(path).unwrap_err())
}

#[test]
fn a_file_is_read_whole() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("state");
    fs::write(&path, small()).unwrap();
    assert_eq!(read(&path).unwrap().section(Kind::META, 0).unwrap().body, b"who");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(read(&link).unwrap().header().id, ID);
}

#[test]
fn what_is_no_file_is_told_and_not_waited_for() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    assert!(matches!(read(&path("missing")), Err(FileError::Missing { .. })));
    assert_eq!(
        refusal(&path("missing")),
        format!("there is no snapshot {}: check the path", path("missing").display())
    );
    assert!(matches!(read(folder.path()), Err(FileError::NotAFile { .. })));
    let fifo = path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert!(matches!(read(&fifo), Err(FileError::NotAFile { .. })));
    let _socket = UnixListener::bind(path("socket")).unwrap();
    assert!(matches!(read(&path("socket")), Err(FileError::NotAFile { .. })));
    assert!(matches!(read(Path::new("/dev/zero")), Err(FileError::NotAFile { .. })));
    fs::write(path("file"), "").unwrap();
    assert!(matches!(read(&path("file/state")), Err(FileError::Host { .. })));
}

#[test]
fn what_a_file_is_not_is_said_with_its_name() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("state");
    let name = path.display();
    File::create(&path).unwrap();
    let empty = "it is empty: its writing did not end, so take the snapshot again";
    assert_eq!(refusal(&path), format!("cannot load the snapshot {name}: {empty}"));
    fs::write(&path, &small()[..100]).unwrap();
    assert!(refusal(&path).contains("truncated: it has 100 bytes of "), "{}", refusal(&path));
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("memory");
    // A hole, larger than any memory that could be had for it.
    let file = File::create(&path).unwrap();
    file.set_len(1 << 42).unwrap();
    assert!(refusal(&path).contains("it is not a snapshot's state file"), "{}", refusal(&path));
    fs::write(&path, small()).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(1 << 42).unwrap();
    assert!(refusal(&path).contains("is it the memory file?"), "{}", refusal(&path));
}
