//! Snapshots: a machine as files, from which it can go on.
//!
//! | room | what it is for |
//! |---|---|
//! | [`file`] | the state file as a container, and how files come to their places whole or not at all |

pub mod file;
pub mod load;
pub mod save;
pub mod saved;
