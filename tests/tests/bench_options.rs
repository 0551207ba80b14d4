//! The command line that all benches share.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

#[path = "../benches/shared/options.rs"]
mod options;

use options::{Choice, Menu};

fn choose(arguments: &[&str]) -> Result<Choice<char, u32>, String> {
    let menu = Menu { bench: "letters", parts: &[("alpha", 'a'), ("beta", 'b')], full: 100, quick: 1 };
    menu.choose(arguments.iter().map(|argument| (*argument).to_owned()))
}

#[test]
fn all_parts_are_measured_in_full_unless_something_is_named() {
    let choice = choose(&["--bench"]).unwrap();
    assert_eq!((choice.effort, choice.json), (100, false));
    assert!(choice.wants('a') && choice.wants('b'));
}

#[test]
fn named_parts_are_measured_and_no_others() {
    let choice = choose(&["beta", "--json", "--quick", "--quick"]).unwrap();
    assert_eq!((choice.effort, choice.json), (1, true));
    assert!(choice.wants('b') && !choice.wants('a'));
}

#[test]
fn what_is_neither_a_part_nor_an_option_is_answered_with_both() {
    let usage = choose(&["alpha", "gamma"]).err().unwrap();
    for said in ["--bench letters", "alpha, beta", "--quick", "--json"] {
        assert!(usage.contains(said), "{said:?} is not in {usage}");
    }
}
