use super::*;

#[test]
fn a_huge_page_is_moved_in_whole() {
    let ram = GuestRam::new(
        &[RamRange { gpa: GuestAddress(0), size_bytes: 4 << 20 }],
        Backing::Anonymous { transparent_huge_pages: true },
    );
    let features = Features::NONE.with(Feature::EVENT_REMOVE).with(Feature::MOVE);
    let uffd = match open(features) {
        Ok(uffd) => uffd,
        Err(error @ OpenError::Lacks { .. }) => {
            return assert!(error.to_string().contains("move"), "{error}");
        }
        Err(error) => panic!("{error}"),
    };
    let registered = Memory::from(Registered::new(uffd, ram.unwrap(), MISSING).unwrap());
    let mut staging = Staging::new(1).unwrap();
    staging.bytes_mut().fill(0x3c);
    let chunk = PageIndex(512).containing(PageSize::Huge2M);
    assert_eq!(registered.move_in(chunk, &mut staging, Wake::Now), done(512));
    assert_eq!([512, 777, 1023].map(|index| content(&registered, index)), [0x3c; 3]);
    assert_eq!(staging.bytes_mut()[0], 0, "the pages are gone from here");
    staging.bytes_mut().fill(1);
    assert_eq!(registered.move_in(chunk, &mut staging, Wake::Now), stopped(0, Stop::Exists));
    assert_eq!(content(&registered, 600), 0x3c);
}

#[test]
fn moving_into_a_memfd_is_not_supported_and_is_told() {
    let registered = registered(MEMFD, 2, MISSING);
    let mut staging = Staging::new(1).unwrap();
    staging.bytes_mut().fill(1);
    assert_eq!(registered.move_in(pages(0, 512), &mut staging, Wake::Now), stopped(0, Stop::Unsupported));
}
