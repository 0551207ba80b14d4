//! From a fault to a page.
//!
//! | room | what it is for |
//! |---|---|
//! | [`scheduler`] | what to ask a source for next: pure |

pub mod scheduler;
