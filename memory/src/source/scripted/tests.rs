use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::source::Priority;
use crate::source::pattern::range_is;

const PAGES: u64 = 256;

fn pages(start: u64, count: u64) -> PageRange {
    PageRange { start: PageIndex(start), count }
}

fn page(index: u64) -> PageIndex {
    PageIndex(index)
}

/// An answer: how, for which pages, and whether what it says is true.
type Answer = (&'static str, PageRange, bool);

struct Scripted {
    source: ScriptedSource,
    handle: ScriptedHandle,
}

impl Scripted {
    fn new(script: Script) -> Self {
        let (source, handle) = ScriptedSource::new(script, PAGES).unwrap();
        Self { source, handle }
    }

    fn ask(&mut self, range: PageRange) {
        self.source.submit(&[PageRequest { range, priority: Priority::Demand }]).unwrap();
    }

    /// Whether the source says within `ms` that there is something.
    fn is_ready(&self, ms: i64) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.source.readiness().unwrap(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 })).unwrap() == 1
    }

    fn complete(&mut self, answers: &mut Vec<Answer>) -> Result<(), SourceError> {
        let pattern = self.source.script.pattern;
        self.source.complete(&mut |reply| {
            answers.push(match reply {
                PageReply::Bytes(range, bytes) => ("bytes", range, range_is(pattern, range, bytes)),
                PageReply::Zero(range) => ("zero", range, range.pages().all(|page| pattern(page).is_none())),
                PageReply::Lost(range, _) => ("lost", range, true),
                PageReply::InPlace(range) => panic!("{range}"),
            });
        })
    }

    /// Every answer that comes, until none does for some time.
    fn answers(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        while self.is_ready(50) {
            self.complete(&mut answers).unwrap();
        }
        answers
    }

    fn answers_to(&mut self, range: PageRange) -> Vec<Answer> {
        self.ask(range);
        self.answers()
    }
}

/// How often each page of `range` came.
fn times(answers: &[Answer], range: PageRange) -> Vec<usize> {
    let times = |page| answers.iter().filter(|(_, answered, _)| answered.contains(page)).count();
    range.pages().map(times).collect()
}

#[test]
fn by_default_it_is_what_a_source_should_be() {
    let mut scripted = Scripted::new(Script::default());
    let expected = [("bytes", pages(3, 4), true), ("zero", pages(7, 1), true), ("bytes", pages(8, 2), true)];
    assert_eq!(scripted.answers_to(pages(3, 7)), expected);
    assert_eq!((scripted.handle.requests(), scripted.handle.answers()), (1, 3));
    assert_eq!((scripted.handle.asked(page(7)), scripted.handle.asked(page(10))), (1, 0));
    assert_eq!(scripted.answers_to(pages(PAGES, 1)), [("lost", pages(PAGES, 1), true)]);
}

#[test]
fn the_same_seed_gives_the_same_answers() {
    let run = |seed| {
        // Without delays: what else is due by then is the clock's business.
        let mut scripted = Scripted::new(Script { delay_ticks: 0..=0, ..Script::rough(seed) });
        scripted.answers_to(pages(0, 64))
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[test]
fn a_rough_source_loses_nothing_and_says_nothing_wrong() {
    for seed in 0..8 {
        let mut scripted = Scripted::new(Script::rough(seed));
        for start in (0..PAGES).step_by(16) {
            scripted.ask(pages(start, 16));
        }
        let answers = scripted.answers();
        assert!(times(&answers, pages(0, PAGES)).iter().all(|times| *times > 0), "seed {seed}");
        assert!(answers.iter().all(|(_, _, is_true)| *is_true));
    }
}

#[test]
fn delays_are_kept() {
    let tick = Duration::from_millis(2);
    let mut scripted = Scripted::new(Script { tick, delay_ticks: 10..=10, ..Script::default() });
    let asked = Instant::now();
    assert_eq!(scripted.answers_to(pages(0, 1)).len(), 1);
    assert!(asked.elapsed() >= tick * 10);
}

#[test]
fn pieces_are_more_than_one_and_twice_is_two() {
    let mut split = Scripted::new(Script::split());
    let answers = split.answers_to(pages(0, 5));
    assert!(answers.len() > 1);
    assert_eq!(times(&answers, pages(0, 5)), [1; 5]);
    let mut twice = Scripted::new(Script::twice());
    assert_eq!(times(&twice.answers_to(pages(0, 5)), pages(0, 5)), [2; 5]);
}

#[test]
fn order_is_lost_where_it_is_to_be() {
    let mut scripted = Scripted::new(Script::reordered());
    (0..7).for_each(|start| scripted.ask(pages(start, 1)));
    let answers = scripted.answers();
    assert_eq!(times(&answers, pages(0, 7)), [1; 7]);
    assert!(!answers.is_sorted_by_key(|(_, range, _)| range.start));
}

#[test]
fn what_is_left_out_comes_later_or_never() {
    let mut never = Scripted::new(Script::short(Rest::Never));
    let came = times(&never.answers_to(pages(0, 6)), pages(0, 6)).iter().sum::<usize>();
    assert!((1..6).contains(&came), "{came}");
    let mut later = Scripted::new(Script::short(Rest::Later));
    assert_eq!(times(&later.answers_to(pages(0, 6)), pages(0, 6)), [1; 6]);
}

#[test]
fn pages_come_that_nobody_asked_for() {
    let mut scripted = Scripted::new(Script::uninvited());
    let came = times(&scripted.answers_to(pages(0, 1)), pages(0, PAGES)).iter().sum::<usize>();
    assert_eq!(came, 2);
}

#[test]
fn each_trouble_is_its_own() {
    let one = |trouble| Scripted::new(Script::trouble(page(2), trouble));
    let (lost, there) = (("lost", pages(2, 1), true), ("bytes", pages(2, 1), true));
    let mut twice = one(Trouble::LostTimes(2));
    assert_eq!([(); 4].map(|()| twice.answers_to(pages(2, 1))[0]), [lost, lost, there, there]);
    let mut always = one(Trouble::Lost);
    assert_eq!([(); 4].map(|()| always.answers_to(pages(2, 1))[0]), [lost; 4]);
    assert!(one(Trouble::Never).answers_to(pages(2, 1)).is_empty());
    assert_eq!(one(Trouble::FalseZero).answers_to(pages(2, 1)), [("zero", pages(2, 1), false)]);
    assert_eq!(one(Trouble::Flipped).answers_to(pages(2, 1)), [("bytes", pages(2, 1), false)]);
    let around = [("bytes", pages(1, 1), true), lost, ("bytes", pages(3, 1), true)];
    assert_eq!(one(Trouble::Lost).answers_to(pages(1, 3)), around, "its neighbours are well");
}

#[test]
fn it_dies_when_it_is_to_and_stays_dead() {
    let mut scripted = Scripted::new(Script::dies_after(2));
    (0..3).for_each(|start| scripted.ask(pages(start, 1)));
    let mut answers = Vec::new();
    assert!(scripted.is_ready(900));
    assert!(matches!(scripted.complete(&mut answers), Err(SourceError::Gone(_))));
    assert_eq!(answers.len(), 2);
    assert!(matches!(scripted.complete(&mut answers), Err(SourceError::Gone(_))));
    assert!(matches!(scripted.source.submit(&[]), Err(SourceError::Gone(_))));
}

#[test]
fn the_gate_holds_what_is_due_until_it_is_released() {
    let mut scripted = Scripted::new(Script::default());
    scripted.handle.hold();
    assert!(scripted.answers_to(pages(0, 1)).is_empty());
    let handle = scripted.handle.clone();
    let other = std::thread::spawn(move || {
        assert!(handle.wait_until_asked(page(1), 1, Duration::from_secs(10)));
        assert!(!handle.wait_until_asked(page(9), 1, Duration::from_millis(1)));
        handle.release();
    });
    assert!(scripted.answers_to(pages(1, 1)).len() <= 2);
    other.join().unwrap();
    scripted.answers();
    assert_eq!(scripted.handle.answers(), 2);
    assert!(!scripted.is_ready(1));
}
