use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use super::*;

/// A saved memory of 2 MiB whose third page is fives.
fn saved() -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(2 * MIB).unwrap();
    file.seek(SeekFrom::Start(2 * 4096)).unwrap();
    file.write_all(&[5; 4096]).unwrap();
    file
}

fn over(file: &File) -> GuestRam {
    GuestRam::over_file(&[range(0, 2 * MIB)], file.try_clone().unwrap()).unwrap()
}

#[test]
fn guests_over_one_file_see_it_and_keep_their_writes() {
    let file = saved();
    let clones = [over(&file), over(&file)];
    let address = GuestAddress(2 * 4096);
    clones[0].write_obj(6_u8, address).unwrap();
    assert_eq!(clones.each_ref().map(|ram| ram.read_obj::<u8>(address).unwrap()), [6, 5]);
    assert_eq!(clones[0].read_obj::<u8>(GuestAddress(0)).unwrap(), 0, "a hole is zero");
    let mut saved = [0; 4096];
    file.read_exact_at(&mut saved, 2 * 4096).unwrap();
    assert_eq!(saved, [5; 4096], "the file is what it was");
    assert!(clones[0].memfd().is_none());
    assert!(
        clones[0].read_cached(PageIndex(2).alone(), &mut saved).is_err(),
        "no memfd, no page cache of its own"
    );
}

#[test]
fn nothing_is_thrown_away_that_would_show_again() {
    let ram = over(&saved());
    ram.write_obj(6_u8, GuestAddress(2 * 4096)).unwrap();
    let error = ram.discard(PageIndex(2).alone()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
    assert_eq!(ram.read_obj::<u8>(GuestAddress(2 * 4096)).unwrap(), 6);
}

#[test]
fn a_file_of_another_size_is_refused() {
    let file = saved();
    for size in [2 * MIB - 4096, 4 * MIB, 0] {
        file.set_len(size).unwrap();
        let error = GuestRam::over_file(&[range(0, 2 * MIB)], file.try_clone().unwrap()).unwrap_err();
        let is_told = matches!(error, RamError::FileSize { wanted_bytes, found_bytes }
            if (wanted_bytes, found_bytes) == (2 * MIB, size));
        assert!(is_told, "{error}");
    }
}
