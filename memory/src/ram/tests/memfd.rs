use std::fs::File;
use std::os::fd::AsFd;

use super::*;

const SHARED: Sharing = Sharing::Shared;
const PRIVATE: Sharing = Sharing::Private;

/// A memfd as somebody else would hand it over: of 2 MiB, sealed.
fn sealed() -> OwnedFd {
    let ram = GuestRam::new(&[range(0, 2 * MIB)], MEMFD).unwrap();
    ram.memfd().unwrap().try_clone_to_owned().unwrap()
}

fn over(memfd: OwnedFd, sharing: Sharing) -> Result<GuestRam, RamError> {
    GuestRam::over_memfd(&[range(0, 2 * MIB)], memfd, sharing)
}

fn refused(memfd: OwnedFd, sharing: Sharing) -> (MemfdError, String) {
    match over(memfd, sharing) {
        Err(RamError::Memfd(error)) => {
            let text = error.to_string();
            (error, text)
        }
        other => panic!("a memfd like this is to be refused: {other:?}"),
    }
}

/// The same file, opened again.
fn reopened(memfd: &OwnedFd, write: bool) -> OwnedFd {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(memfd));
    File::options().read(true).write(write).open(path).unwrap().into()
}

#[test]
fn two_shared_mappings_of_one_memfd_are_one_memory() {
    let memfd = sealed();
    let one = over(memfd.try_clone().unwrap(), SHARED).unwrap();
    let other = over(memfd, SHARED).unwrap();
    assert_eq!(one.backing().kind(), BackingKind::SharedCache);
    one.write_obj(7_u8, GuestAddress(4096)).unwrap();
    assert_eq!(other.read_obj::<u8>(GuestAddress(4096)).unwrap(), 7);
    assert!(one.memfd().is_some());
}

#[test]
fn private_mappings_see_the_memfd_and_keep_their_writes() {
    let memfd = sealed();
    let base = over(memfd.try_clone().unwrap(), SHARED).unwrap();
    base.write_cached(PageIndex(2).alone(), &[5; 4096]).unwrap();
    let clones = [over(memfd.try_clone().unwrap(), PRIVATE).unwrap(), over(memfd, PRIVATE).unwrap()];
    let address = GuestAddress(2 * 4096);
    clones[0].write_obj(6_u8, address).unwrap();
    let read = |ram: &GuestRam| ram.read_obj::<u8>(address).unwrap();
    assert_eq!([&base, &clones[0], &clones[1]].map(read), [5, 6, 5]);
    let mut cached = [0; 4096];
    clones[0].read_cached(PageIndex(2).alone(), &mut cached).unwrap();
    assert_eq!(cached, [5; 4096], "the memfd is what it was");
}

#[test]
fn a_descriptor_that_is_no_memfd_is_refused() {
    let file = File::open("/proc/self/exe").unwrap();
    let (error, text) = refused(file.into(), SHARED);
    assert!(matches!(error, MemfdError::NotMemfd) && text.contains("memfd_create"), "{text}");
    let (error, _) = refused(File::open("/dev/null").unwrap().into(), PRIVATE);
    assert!(matches!(error, MemfdError::NotMemfd));
}

#[test]
fn a_memfd_of_another_size_is_refused_with_both() {
    for size_bytes in [MIB, 4 * MIB] {
        let result = GuestRam::over_memfd(&[range(0, size_bytes)], sealed(), SHARED);
        let Err(RamError::Memfd(error)) = result else { panic!("{result:?}") };
        assert!(error.to_string().contains(&size_bytes.to_string()), "{error}");
        assert!(error.to_string().contains("its memfd 2097152"), "{error}");
    }
}

#[test]
fn a_memfd_that_can_be_shrunk_is_refused() {
    // A file of shmem that has a name cannot be sealed at all.
    let Ok(file) =
        File::options().read(true).write(true).create(true).truncate(true).open("/dev/shm/faultless-test")
    else {
        panic!("/dev/shm is there on every Linux that this runs on")
    };
    std::fs::remove_file("/dev/shm/faultless-test").unwrap();
    file.set_len(2 * MIB).unwrap();
    for sharing in [SHARED, PRIVATE] {
        let (error, text) = refused(file.as_fd().try_clone_to_owned().unwrap(), sharing);
        assert!(matches!(error, MemfdError::CanShrink) && text.contains("F_SEAL_SHRINK"), "{text}");
    }
}

#[test]
fn a_memfd_that_cannot_be_written_is_mapped_privately_only() {
    let read_only = reopened(&sealed(), false);
    let (error, text) = refused(read_only.try_clone().unwrap(), SHARED);
    assert!(matches!(error, MemfdError::ReadOnly) && text.contains("map it privately"), "{text}");
    let ram = over(read_only, PRIVATE).unwrap();
    ram.write_obj(1_u8, GuestAddress(0)).unwrap();
    assert!(ram.write_cached(PageIndex(0).alone(), &[1; 4096]).is_err());
    assert!(over(reopened(&sealed(), true), SHARED).is_ok());
}

#[test]
fn cached_pages_are_whole_and_inside_or_refused() {
    let ram = GuestRam::new(&[range(0, 2 * MIB)], MEMFD).unwrap();
    let whole = ram.pages();
    let content: Vec<u8> = (0..whole.bytes()).map(|index| (index % 251) as u8).collect();
    ram.write_cached(whole, &content).unwrap();
    let mut back = vec![0; content.len()];
    ram.read_cached(whole, &mut back).unwrap();
    assert!(back == content);
    assert_eq!(ram.read_obj::<u8>(GuestAddress(1000)).unwrap(), content[1000]);

    let text = |result: io::Result<()>| result.unwrap_err().to_string();
    let past = PageRange { start: PageIndex(511), count: 2 };
    assert!(text(ram.write_cached(past, &[0; 8192])).contains("name pages below 512"));
    assert!(text(ram.write_cached(PageIndex(0).alone(), &[0; 4095])).contains("give a buffer"));
    assert!(text(ram.read_cached(PageIndex(0).alone(), &mut [0; 8192])).contains("give a buffer"));
    let anonymous = GuestRam::new(&[range(0, 2 * MIB)], ANONYMOUS).unwrap();
    assert!(text(anonymous.write_cached(PageIndex(0).alone(), &[0; 4096])).contains("memfd"));
}

#[test]
fn every_backing_says_what_places_its_pages() {
    let hugetlb = Backing::HugetlbMemfd { sharing: SHARED };
    let all = [ANONYMOUS, MEMFD, Backing::MemfdPrivate, Backing::Hugetlb2M, hugetlb];
    assert_eq!(all.map(Backing::supports_move), [true, false, false, false, false]);
    assert_eq!(all.map(Backing::supports_zeropage), [true, true, true, false, false]);
    assert_eq!(all.map(Backing::has_page_cache), [false, true, true, false, true]);
    assert_eq!(hugetlb.page_size(), PageSize::Huge2M);
}
