//! A snapshot that is loaded while others take its place: state and memory are of one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;

use api::types::{MemBackend, MemBackendType, SnapshotLoad};
use tempfile::tempdir;

use super::super::file::{self, Aside};
use super::super::load::{LoadError, Loaded};
use super::*;
use crate::machine::memory::MemoryPlan;

const PAGE_BYTES: u64 = 4096;
/// So many pages of data that not each of them is looked at, and one of those that are not.
const DATA_PAGES: u64 = 34;
const UNSEEN: u64 = 1;
const SAVES: u8 = 250;

/// Saves the machine `id`, of whose memory one page tells which it is.
fn save(id: u8, folder: &Path) {
    let [state, memory] = paths(0, folder);
    let (memory, state) = (Aside::create(&memory).unwrap(), Aside::create(&state).unwrap());
    memory.file().set_len(4 * MIB).unwrap();
    let bytes = |page| [if page == UNSEEN { id } else { 0xee }; 4096];
    for page in 0..DATA_PAGES {
        memory.file().write_all_at(&bytes(page), page * PAGE_BYTES).unwrap();
    }
    let sums: Vec<_> = (0..DATA_PAGES).map(|page| crc32c::crc32c(&bytes(page))).collect();
    let contents = json!({ "pages": 1024, "data": [[0, DATA_PAGES]], "sums": sums });
    let mut saved = machine(id);
    saved.memory.contents = serde_json::from_value(contents).unwrap();
    state.write_all(&saved.encode().finish().unwrap()).unwrap();
    file::place(memory, state).unwrap();
}

fn load(folder: &Path) -> Result<(u8, File), LoadError> {
    let [state, memory] = paths(0, folder).map(|path| path.to_str().unwrap().to_owned());
    let load = SnapshotLoad { snapshot_path: state, ..SnapshotLoad::default() };
    let backend = MemBackend { backend_type: MemBackendType::File, backend_path: memory };
    match Loaded::open(&load, &backend)? {
        (loaded, MemoryPlan::File(file)) => Ok((loaded.saved.id.0[0], file)),
        _ => panic!("a memory file is mapped"),
    }
}

#[test]
fn what_is_loaded_is_of_one_moment() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    save(0, folder);
    thread::scope(|scope| {
        let saving = scope.spawn(|| (1..=SAVES).for_each(|id| save(id, folder)));
        while !saving.is_finished() {
            match load(folder) {
                Ok((id, memory)) => {
                    let mut byte = [0];
                    memory.read_exact_at(&mut byte, UNSEEN * PAGE_BYTES).unwrap();
                    assert_eq!(byte[0], id, "state and memory are of two snapshots");
                }
                // Whoever saves as fast as this may be faster each time.
                Err(LoadError::Replaced { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    assert_eq!(load(folder).unwrap().0, SAVES);
}
