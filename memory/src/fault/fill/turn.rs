//! Whether a filler may be left where it is.
//!
//! ```text
//!            begin_reading               leave
//!   working ───────────────▶ reading ─────────────▶ left
//!           ◀───────────────    the read comes back: it places nothing, and ends
//!             end_reading
//! ```
//!
//! A read may hang without end, as from a file server that is gone. Until it comes back the filler has claimed no page
//! and places none, so that nobody has to wait for it, if only it places none when it does come back.

use std::sync::atomic::{AtomicU8, Ordering};

const WORKING: u8 = 0;
const READING: u8 = 1;
const LEFT: u8 = 2;

/// What a filler is at.
#[derive(Debug, Default)]
pub(super) struct Turn(AtomicU8);

impl Turn {
    /// A read begins. Says whether the filler is to do it, which it is not once it was left.
    #[must_use]
    pub(super) fn begin_reading(&self) -> bool {
        self.change(WORKING, READING)
    }

    /// A read came back. Says whether what was read may be placed.
    #[must_use]
    pub(super) fn end_reading(&self) -> bool {
        self.change(READING, WORKING)
    }

    /// Leaves a filler that reads; says whether it was left. From then on it places nothing.
    #[must_use]
    pub(super) fn leave(&self) -> bool {
        self.change(READING, LEFT)
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_filler_that_reads_is_left_and_then_it_places_nothing() {
        let turn = Turn::default();
        assert!(!turn.leave(), "it may be placing");
        assert!(turn.begin_reading() && turn.end_reading());
        assert!(!turn.leave());
        assert!(turn.begin_reading() && turn.leave());
        assert!(!turn.end_reading() && !turn.begin_reading() && !turn.leave(), "once and for all");
    }
}
