//! From a fault to a page.
//!
//! | room | what it is for |
//! |---|---|
//! | [`around`] | which pages to prefetch around one that is demanded: pure |
//! | [`scheduler`] | what to ask a source for next: pure |

pub mod around;
pub mod scheduler;
