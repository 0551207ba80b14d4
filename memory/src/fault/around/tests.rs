use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// 64 MiB and a bit: the last chunk is not whole.
const RAM: u64 = 64 * 256 + 100;

fn adaptive() -> FaultAround {
    FaultAround::new(AroundPolicy::default(), RAM)
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

/// Touches pages in this order, with every window placed at once; gives the windows, of which there is one a fault.
fn touch(around: &mut FaultAround, touched: impl IntoIterator<Item = u64>) -> Vec<PageRange> {
    let mut present = BTreeSet::new();
    let mut windows = Vec::new();
    for page in touched {
        if present.insert(page) {
            let window = around.window(PageIndex(page));
            present.extend(window.pages().map(|page| page.0));
            windows.push(window);
        }
    }
    windows
}

#[test]
fn off_is_off_and_nothing_is_around_what_is_no_ram() {
    let mut off = FaultAround::new(AroundPolicy::Off, RAM);
    assert!(off.window(PageIndex(7)).is_empty());
    assert!(adaptive().window(PageIndex(RAM)).is_empty());
}

#[test]
fn limits_are_rounded_to_what_can_be_aligned() {
    let policy = AroundPolicy::Adaptive { pages_min: 9, pages_max: 0 };
    assert_eq!(FaultAround::new(policy, RAM).window(PageIndex(17)), pages(16, 16));
    let policy = AroundPolicy::Adaptive { pages_min: u64::MAX, pages_max: 1 };
    assert_eq!(FaultAround::new(policy, RAM).window(PageIndex(17)), pages(0, 512));
    let policy = AroundPolicy::Adaptive { pages_min: 0, pages_max: 0 };
    assert_eq!(FaultAround::new(policy, RAM).window(PageIndex(17)), pages(17, 1));
}

#[test]
fn a_walk_gets_ever_longer_windows_in_either_direction() {
    let up = touch(&mut adaptive(), 16..2000);
    let expected =
        [(16, 16), (32, 32), (64, 64), (128, 128), (256, 256), (512, 512), (1024, 512), (1536, 512)];
    assert_eq!(up, expected.map(|(start, count)| pages(start, count)));
    let down = touch(&mut adaptive(), (900..2032).rev());
    let expected = [(2016, 16), (1984, 32), (1920, 64), (1792, 128), (1536, 256), (1024, 512), (512, 512)];
    assert_eq!(down, expected.map(|(start, count)| pages(start, count)));
    let chunks = up.iter().filter(|window| FaultAround::is_chunk(**window)).count();
    assert_eq!(chunks, 3, "huge pages can be moved in once the stream runs");
}

#[test]
fn a_walk_takes_few_faults() {
    for start in [0, 1, 17, 100, 511, 512] {
        let faults = touch(&mut adaptive(), start..RAM).len();
        assert!(faults <= 40, "{faults} upwards from {start}");
        let faults = touch(&mut adaptive(), (0..RAM - start).rev()).len();
        assert!(faults <= 40, "{faults} downwards from {start} before the end");
    }
}

#[test]
fn as_many_walks_at_once_as_there_are_streams_do_not_disturb_each_other() {
    let each = RAM / STREAMS_MAX as u64;
    let touched = (0..each).flat_map(|page| (0..STREAMS_MAX as u64).map(move |walk| walk * each + page));
    let faults = touch(&mut adaptive(), touched).len();
    assert!(faults <= STREAMS_MAX * 12, "{faults}");
}

#[test]
fn a_walk_is_followed_though_faults_come_from_everywhere() {
    let mut around = adaptive();
    let mut longest = 0;
    let mut next = 0;
    for fault in 0..20 {
        let window = around.window(PageIndex(next));
        (next, longest) = (window.end().0, longest.max(window.count));
        for random in 0..STREAMS_MAX as u64 - 1 {
            around.window(PageIndex(RAM - 1 - 64 * (fault * 7 + random)));
        }
    }
    assert_eq!(longest, BASE_PAGES_PER_HUGE);
}

#[test]
fn what_is_on_its_way_is_not_grown() {
    let mut around = adaptive();
    around.window(PageIndex(16));
    assert_eq!(around.window(PageIndex(20)), pages(16, 16));
    assert_eq!(around.window(PageIndex(32)), pages(32, 32), "and the stream goes on behind it");
    assert_eq!(around.window(PageIndex(60)), pages(48, 16));
}

proptest! {
    #[test]
    fn windows_are_what_they_are_said_to_be(
        faults in proptest::collection::vec(prop_oneof![0..RAM, 0..200_u64, RAM - 200..RAM], 0..200),
        (min, max) in (0..10_u32, 0..10_u32),
    ) {
        let policy = AroundPolicy::Adaptive { pages_min: 1 << min, pages_max: 1 << max };
        let mut around = FaultAround::new(policy, RAM);
        for page in faults {
            let window = around.window(PageIndex(page));
            prop_assert!(window.contains(PageIndex(page)));
            prop_assert!(window.end().0 <= RAM);
            prop_assert!(window.count <= 1 << min.max(max));
            prop_assert!(window.widened(PageSize::Huge2M).count <= BASE_PAGES_PER_HUGE, "{window} straddle chunks");
            prop_assert!(around.streams.len() <= STREAMS_MAX);
        }
    }

    /// Faults that are further from each other than a window and what may be left out behind it.
    #[test]
    fn faults_from_nowhere_get_the_shortest_windows(
        faults in proptest::collection::vec((0..RAM / 64).prop_map(|nth| nth * 64), 0..200),
        offset in 0..16_u64,
    ) {
        let mut around = adaptive();
        for page in faults {
            prop_assert_eq!(around.window(PageIndex(page + offset)), pages(page, 16));
        }
    }
}
