//! A save that is cut off, at every step and in between, leaves a whole snapshot.
//!
//! The saving is done by a process of its own, which is this test's binary: it can be killed.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use tempfile::tempdir;

use super::aside::names;
use super::place::{Placing, Step};
use super::*;

const MEMORY_BYTES: usize = 1 << 20;
/// What the child is told, by its environment: where to save, and how far to go.
const FOLDER: &str = "FAULTLESS_TEST_SAVE_FOLDER";
const WHAT: &str = "FAULTLESS_TEST_SAVE_WHAT";
/// What the child says once it is as far as it was told to go.
const READY: &[u8] = b"\nready\n";

fn state_path(folder: &Path) -> PathBuf {
    folder.join("state")
}

fn memory_at(folder: &Path) -> PathBuf {
    folder.join("memory")
}

/// Snapshot number `generation`, written aside.
fn write(folder: &Path, generation: u8) -> Result<(Aside, Aside), AsideError> {
    let (memory, state) = (Aside::create(&memory_at(folder))?, Aside::create(&state_path(folder))?);
    memory.write_all(&vec![generation; MEMORY_BYTES])?;
    let mut builder = Builder::new(SnapshotId([generation; 16]));
    state.write_all(&builder.add(Kind::META, 1, 0, vec![generation]).finish().unwrap())?;
    Ok((memory, state))
}

fn save(folder: &Path, generation: u8) -> Result<(), AsideError> {
    let (memory, state) = write(folder, generation)?;
    place(memory, state)
}

/// The number of the snapshot that is there, which has to be whole.
fn whole(folder: &Path) -> u8 {
    let file = read(&state_path(folder)).unwrap();
    let generation = file.section(Kind::META, 0).unwrap().body[0];
    let memory = fs::read(memory_path(file.header().id, &memory_at(folder)).unwrap()).unwrap();
    assert_eq!(memory.len(), MEMORY_BYTES);
    assert!(memory.iter().all(|&byte| byte == generation), "state {generation}, memory {}", memory[0]);
    generation
}

/// What the child does. Without its environment this is no child, and nothing is to be done.
#[test]
fn child() {
    let (Ok(folder), Ok(what)) = (env::var(FOLDER), env::var(WHAT)) else { return };
    let folder = Path::new(&folder);
    match what.as_str() {
        "for ever" => (0..).try_for_each(|count: u32| save(folder, (count % 250) as u8)).unwrap(),
        "beyond the limit" => {
            let error = save(folder, 2).unwrap_err();
            assert!(error.to_string().contains("has room"), "{error}");
            assert!(matches!(error, AsideError::Host { step: "write", .. }), "{error:?}");
        }
        steps => {
            let (memory, state) = write(folder, 2).unwrap();
            let mut placing = Placing::new(memory, state).unwrap();
            let steps = Step::ALL.into_iter().take(steps.parse().unwrap());
            steps.for_each(|step| placing.take(step).unwrap());
            std::io::stdout().write_all(READY).unwrap();
            sleep(Duration::from_secs(600));
        }
    }
}

/// A child that does `what` in `folder`, through `shell`, which ends with running it.
fn start(folder: &Path, what: &str, shell: &str) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{shell} exec \"$0\" \"$@\"")]).arg(env::current_exe().unwrap());
    command.args(["--exact", "snapshot::file::tests::cut_off::child", "--nocapture"]);
    command.env(FOLDER, folder).env(WHAT, what).stdout(Stdio::piped()).spawn().unwrap()
}

fn wait_until_ready(child: &mut Child) {
    let mut said = Vec::new();
    let output = child.stdout.as_mut().unwrap();
    while !said.windows(READY.len()).any(|part| part == READY) {
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&said)));
        said.push(byte[0]);
    }
}

/// Saves snapshot 2 over snapshot 1, or over none, up to `steps`, and is killed.
fn killed_after(folder: &Path, steps: usize) {
    let mut child = start(folder, &steps.to_string(), "");
    wait_until_ready(&mut child);
    child.kill().unwrap();
    child.wait().unwrap();
}

fn placed_after(steps: usize) -> bool {
    Step::ALL[..steps].contains(&Step::PlaceState)
}

#[test]
fn killed_after_any_step_the_old_snapshot_is_whole_or_the_new_one_is() {
    for steps in 0..=Step::ALL.len() {
        let folder = tempdir().unwrap();
        save(folder.path(), 1).unwrap();
        killed_after(folder.path(), steps);
        assert_eq!(whole(folder.path()), if placed_after(steps) { 2 } else { 1 }, "after {steps} steps");
        // It is killed at the same step once more: what the first one left is nothing to stumble over.
        killed_after(folder.path(), steps);
        assert_eq!(
            whole(folder.path()),
            if placed_after(steps) { 2 } else { 1 },
            "after {steps} steps, twice"
        );
        save(folder.path(), 3).unwrap();
        assert_eq!(whole(folder.path()), 3, "after {steps} steps");
        assert_eq!(names(folder.path()), ["memory", "state"], "the next save cleans up");
    }
}

#[test]
fn killed_where_there_was_none_there_is_none_or_a_whole_one() {
    for steps in 0..=Step::ALL.len() {
        let folder = tempdir().unwrap();
        killed_after(folder.path(), steps);
        if placed_after(steps) {
            assert_eq!(whole(folder.path()), 2);
        } else {
            assert!(matches!(read(&state_path(folder.path())), Err(FileError::Missing { .. })));
        }
        save(folder.path(), 3).unwrap();
        assert_eq!((whole(folder.path()), names(folder.path()).len()), (3, 2));
    }
}

#[test]
fn killed_at_any_time_there_is_a_whole_snapshot() {
    let folder = tempdir().unwrap();
    save(folder.path(), 255).unwrap();
    let mut seen = std::collections::HashSet::new();
    for round in 0..40 {
        let mut child = start(folder.path(), "for ever", "");
        sleep(Duration::from_micros(20_000 + round * 1_777));
        child.kill().unwrap();
        child.wait().unwrap();
        seen.insert(whole(folder.path()));
    }
    assert!(seen.len() > 1, "nothing was ever saved: {seen:?}");
    save(folder.path(), 251).unwrap();
    assert_eq!(names(folder.path()), ["memory", "state"]);
}

#[test]
fn a_disk_that_is_full_leaves_the_old_snapshot_and_nothing_else() {
    let folder = tempdir().unwrap();
    save(folder.path(), 1).unwrap();
    // A file may have 64 blocks, of 512 bytes or of 1024, and a write beyond is an error.
    let child = start(folder.path(), "beyond the limit", "trap '' XFSZ; ulimit -f 64;");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    assert_eq!((whole(folder.path()), names(folder.path()).len()), (1, 2));
}

#[test]
fn a_step_that_fails_leaves_the_old_snapshot() {
    let folder = tempdir().unwrap();
    save(folder.path(), 1).unwrap();
    let (memory, state) = write(folder.path(), 2).unwrap();
    // The state file written aside is gone, so it cannot be renamed when the memory file has been.
    fs::remove_file(folder.path().join(".state.partial")).unwrap();
    let error = place(memory, state).unwrap_err();
    assert!(matches!(error, AsideError::Host { step: "replace", .. }), "{error}");
    assert_eq!(whole(folder.path()), 1);
    save(folder.path(), 3).unwrap();
    assert_eq!((whole(folder.path()), names(folder.path()).len()), (3, 2));
}

#[test]
fn of_many_that_save_at_once_each_does_it_whole_or_is_told_to_wait() {
    const SAVERS: u8 = 4;
    let folder = tempdir().unwrap();
    save(folder.path(), 0).unwrap();
    let path = folder.path();
    let saver = move |number: u8| {
        let results = (0..20).map(|round| save(path, 1 + number + round * SAVERS));
        let (done, refused): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
        let is_told = |error: AsideError| assert!(matches!(error, AsideError::InUse { .. }), "{error}");
        refused.into_iter().filter_map(Result::err).for_each(is_told);
        done.len()
    };
    let done: usize = std::thread::scope(|scope| {
        let savers: Vec<_> = (0..SAVERS).map(|number| scope.spawn(move || saver(number))).collect();
        savers.into_iter().map(|saver| saver.join().unwrap()).sum()
    });
    assert!(done > 0);
    assert!(whole(folder.path()) > 0);
    assert_eq!(names(folder.path()), ["memory", "state"]);
}

#[test]
fn a_memory_file_of_any_name_can_be_loaded() {
    let long = PathBuf::from("a".repeat(250));
    assert_eq!(memory_path(ID, &long).unwrap(), long);
}

#[test]
fn only_what_belongs_to_the_memory_file_is_removed() {
    let folder = tempdir().unwrap();
    let id = "0".repeat(32);
    let others = [format!(".memory2.{id}.kept"), ".memory.old.kept".into(), format!(".mem.{id}.kept")];
    let stale = format!(".memory.{id}.kept");
    others.iter().chain([&stale]).for_each(|name| fs::write(folder.path().join(name), "").unwrap());
    save(folder.path(), 1).unwrap();
    let left = names(folder.path());
    assert!(!left.contains(&stale) && others.iter().all(|name| left.contains(name)), "{left:?}");
}

#[test]
fn both_files_cannot_be_one_and_the_files_can_be_apart() {
    let (one, other) = (tempdir().unwrap(), tempdir().unwrap());
    let (memory, state) = (memory_at(one.path()), state_path(other.path()));
    for generation in [1, 2] {
        let asides = (Aside::create(&memory).unwrap(), Aside::create(&state).unwrap());
        asides.0.write_all(&[generation]).unwrap();
        asides.1.write_all(&small()).unwrap();
        place(asides.0, asides.1).unwrap();
        assert_eq!(fs::read(memory_path(ID, &memory).unwrap()).unwrap(), [generation]);
    }
    assert_eq!((names(one.path()), names(other.path())), (vec!["memory".into()], vec!["state".into()]));
    let _first = Aside::create(&memory).unwrap();
    let same = Aside::create(&memory);
    assert!(matches!(same, Err(AsideError::InUse { .. })), "one path cannot be both: {same:?}");
}
