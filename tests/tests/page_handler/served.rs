//! A handler that does what it should, or something else that the guest sees.

use memory::PageSize;
use tests::host::HugePages;

use super::*;

#[test]
fn every_page_comes_from_the_memory_file() {
    for backing in [ANONYMOUS, THP] {
        let stage = Stage::new(backing);
        let handler = stage.handler("socket", Mode::Good);
        let handed = stage.connect("socket").unwrap();
        for page in (0..PAGES).rev() {
            assert_eq!(stage.read(page), [content(page); PAGE_BYTES], "{page} of {backing:?}");
        }
        stage.assert_nothing_told();
        drop(handed);
        let served = handler.join().unwrap().unwrap();
        assert_eq!(served, Served { pages: PAGES, ..Served::default() }, "{backing:?}");
    }
}

#[test]
fn huge_pages_come_whole() {
    let huge_pages = 6 / 2;
    let Some(_pool) = HugePages::reserve(huge_pages) else {
        println!("this machine has no huge pages to reserve: memory of base pages is tested alone");
        return;
    };
    let stage = Stage::new(Backing::Hugetlb2M);
    let handler = stage.handler("socket", Mode::Good);
    let handed = stage.connect("socket").unwrap();
    let per_huge = PageSize::Huge2M.base_pages();
    assert_eq!(stage.read(700), [content(700); PAGE_BYTES]);
    stage.ram.discard(pages(per_huge, 2 * per_huge)).unwrap();
    assert_eq!(stage.read(701), [0; PAGE_BYTES]);
    assert_eq!(stage.read(PAGES - 1), [content(PAGES - 1); PAGE_BYTES]);
    drop(handed);
    assert_eq!(handler.join().unwrap().unwrap(), Served { pages: 2, zeros: 1, removals: 1 });
}

#[test]
fn what_is_given_back_is_told_and_zero_from_then_on() {
    let stage = Stage::new(ANONYMOUS);
    let handler = stage.handler("socket", Mode::Good);
    let handed = stage.connect("socket").unwrap();
    assert_eq!([9, 10, 1030].map(|page| stage.read(page)[0]), [9, 10, 1030].map(content));
    stage.ram.discard(pages(10, 20)).unwrap();
    stage.ram.discard(pages(1030, 1031)).unwrap();
    for page in [10, 15, 19, 1030] {
        assert_eq!(stage.read(page), [0; PAGE_BYTES], "{page}");
    }
    assert_eq!([9, 20, 1031].map(|page| stage.read(page)[0]), [9, 20, 1031].map(content));
    drop(handed);
    assert_eq!(handler.join().unwrap().unwrap(), Served { pages: 5, zeros: 4, removals: 2 });
}

/// What a page should be, only the handler knows. This is how it looks, and that nothing else is told.
#[test]
fn wrong_pages_are_what_the_guest_gets() {
    let stage = Stage::new(ANONYMOUS);
    let handler = stage.handler("socket", Mode::Wrong);
    let handed = stage.connect("socket").unwrap();
    assert_eq!(stage.read(3), [!content(3); PAGE_BYTES]);
    stage.assert_nothing_told();
    drop(handed);
    assert_eq!(handler.join().unwrap().unwrap().pages, 1);
}
