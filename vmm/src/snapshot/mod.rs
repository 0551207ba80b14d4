//! Snapshots: a machine as files, from which it can go on.
//!
//! | room | what it is for |
//! |---|---|
//! | [`file`](mod@file) | the state file as a container, and how files come to their places whole or not at all |
//! | [`saved`] | what is in it |
//! | [`save`] | from a VM that stands still to files |
//! | [`lineage`] | what a diff is over |
//! | [`load`] | from files to what a VM is made of |
//! | [`mapped`] | a memory file before it is mapped |
//! | [`files`] | what one can do with the files without a VM |

pub mod file;
pub mod files;
pub mod lineage;
pub mod load;
pub mod mapped;
pub mod save;
pub mod saved;

#[cfg(test)]
mod tests;
