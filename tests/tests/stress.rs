//! Rounds of random work on lazily served memory: `make stress` for ten seconds.
//!
//! The rounds of fixed seeds are those that every change is tried with; the one of a fresh seed finds more in time, and
//! says how it is had again.

use std::time::{SystemTime, UNIX_EPOCH};

use memory::source::pattern::Sequence;
use tests::stress::{self, Extras};

const FIXED: u64 = 30;

/// What the pool has is for the tests that take their turn at it.
const EXTRAS: Extras = Extras { huge_pages: 0, pages_out: false, is_quick: true };

fn passes(seed: u64) {
    if let Err(failure) = stress::round(seed, EXTRAS) {
        panic!("{failure}");
    }
}

#[test]
fn no_byte_is_wrong_and_nobody_waits_in_vain() {
    (1..=FIXED).map(|number| Sequence::new(number).next_u64()).for_each(passes);
}

#[test]
fn nor_with_a_fresh_seed() {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970");
    let seed = Sequence::new(u64::try_from(since.as_millis()).expect("that many years are far")).next_u64();
    println!("stress: round {seed}");
    passes(seed);
}
