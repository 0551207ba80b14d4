use super::*;
use crate::page::PageIndex;
use crate::source::QUEUED_REQUESTS_MAX;
use crate::source::pattern::{Pattern, PatternReader, range_is};

const PATTERN: Pattern = |page| (page.0 % 256 < 128).then_some(1);

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

fn source() -> Reading<PatternReader> {
    Reading::new(PatternReader { pattern: PATTERN, pages: 1024 })
}

fn ask(source: &mut dyn PageSource, range: PageRange, priority: Priority) {
    source.submit(&[PageRequest { range, priority }]).unwrap();
}

/// What one `complete` answers: how, and for which pages.
fn answers(source: &mut dyn PageSource) -> Vec<(&'static str, PageRange)> {
    let mut answers = Vec::new();
    let completed = source.complete(&mut |reply| {
        answers.push(match reply {
            PageReply::Bytes(range, bytes) => {
                assert!(range_is(PATTERN, range, bytes), "{range}");
                ("bytes", range)
            }
            PageReply::Zero(range) => {
                assert!(range.pages().all(|page| PATTERN(page).is_none()), "{range}");
                ("zero", range)
            }
            PageReply::Lost(range, SourceError::Truncated { .. }) => ("lost", range),
            other => panic!("{other:?}"),
        });
    });
    completed.unwrap();
    answers
}

#[test]
fn what_is_demanded_overtakes_what_was_queued_before_it() {
    let mut source = source();
    assert!(!source.has_more());
    ask(&mut source, pages(0, 10), Priority::Prefetch);
    ask(&mut source, pages(130, 1), Priority::Demand);
    ask(&mut source, pages(5, 1), Priority::Demand);
    assert!(source.has_more());
    let expected = [("zero", pages(130, 1)), ("bytes", pages(5, 1)), ("bytes", pages(0, 10))];
    assert_eq!(answers(&mut source), expected);
    assert!(!source.has_more() && answers(&mut source).is_empty());
}

#[test]
fn prefetch_comes_in_portions_so_that_new_demand_does_not_wait_for_all_of_it() {
    let mut source = source();
    ask(&mut source, pages(0, 60), Priority::Prefetch);
    ask(&mut source, pages(100, 100), Priority::Prefetch);
    assert_eq!(answers(&mut source), [("bytes", pages(0, 60)), ("bytes", pages(100, 4))]);
    assert!(source.has_more());
    ask(&mut source, pages(7, 1), Priority::Demand);
    assert_eq!(answers(&mut source), [("bytes", pages(7, 1)), ("bytes", pages(104, 64))]);
    assert_eq!(answers(&mut source), [("zero", pages(168, 32))]);
    assert!(!source.has_more());
}

#[test]
fn what_is_prefetched_around_many_that_fault_at_once_does_not_pile_up() {
    let mut source = source();
    let prefetched = |source: &mut dyn PageSource, demanded: u64| -> u64 {
        (0..demanded).for_each(|page| ask(source, pages(page, 1), Priority::Demand));
        let answers = answers(source);
        answers[usize::try_from(demanded).unwrap()..].iter().map(|(_, range)| range.count).sum()
    };
    ask(&mut source, pages(0, 1024), Priority::Prefetch);
    assert_eq!(prefetched(&mut source, 4), PIECE_PAGES);
    assert_eq!(prefetched(&mut source, 8), 8 * PAGES_PER_DEMAND);
    assert_eq!(
        prefetched(&mut source, 100),
        PREFETCH_PAGES_MAX,
        "who faults meanwhile does not wait for more"
    );
    assert_eq!(prefetched(&mut source, 0), PIECE_PAGES);
}

#[test]
fn demand_is_not_held_back_however_much_it_is() {
    let mut source = source();
    ask(&mut source, pages(0, 256), Priority::Demand);
    let pieces = [("bytes", 0), ("bytes", 64), ("zero", 128), ("zero", 192)];
    assert_eq!(answers(&mut source), pieces.map(|(how, start)| (how, pages(start, 64))));
}

#[test]
fn what_cannot_be_read_is_lost_alone() {
    let mut source = source();
    ask(&mut source, pages(1020, 8), Priority::Demand);
    ask(&mut source, pages(1, 1), Priority::Demand);
    ask(&mut source, pages(2, 0), Priority::Demand);
    assert_eq!(answers(&mut source), [("lost", pages(1020, 8)), ("bytes", pages(1, 1))]);
}

#[test]
fn a_batch_over_the_bound_is_refused_whole() {
    let mut source = source();
    let request = PageRequest { range: pages(0, 1), priority: Priority::Demand };
    source.submit(&vec![request; QUEUED_REQUESTS_MAX - 1]).unwrap();
    let refused = source.submit(&[request, request]).unwrap_err();
    assert!(matches!(refused, SourceError::QueueFull { queued } if queued == QUEUED_REQUESTS_MAX - 1));
    source.submit(&[request]).unwrap();
    assert_eq!(answers(&mut source).len(), QUEUED_REQUESTS_MAX);
    source.submit(&[request]).unwrap();
}

#[test]
fn a_reader_that_is_gone_ends_the_source() {
    struct Gone;
    impl PageReader for Gone {
        fn name(&self) -> &'static str {
            "gone"
        }

        fn read(&mut self, _: PageRange, _: &mut [u8]) -> Result<Content, SourceError> {
            Err(SourceError::Gone("the server hung up".to_owned()))
        }
    }
    let mut source = Reading::new(Box::new(Gone) as Box<dyn PageReader>);
    assert_eq!((source.name(), source.readiness().is_none()), ("gone", true));
    ask(&mut source, pages(0, 1), Priority::Demand);
    let error = source.complete(&mut |reply| panic!("{reply:?}")).unwrap_err();
    assert_eq!(error.to_string(), "the source is gone: the server hung up");
}
