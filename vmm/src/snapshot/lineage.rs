//! What a diff is over: the snapshot that a machine was last saved to or loaded from, and what is below that.
//!
//! ```text
//!   full ◀── diff ◀── diff ◀── the machine
//!   └──────ancestors──────┘    the last is what its next diff names
//! ```
//!
//! Invariant: a diff that is written can be loaded, as long as its ancestors stay where they are. So where it would take
//! the place of one of them, or be one too many, the machine is saved whole.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use api::types::SnapshotCreate;

use super::load::CHAIN_MAX;
use super::saved::Parent;

/// The snapshots that a machine's memory is made of, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage(Vec<Parent>);

impl Lineage {
    /// Of a machine that was saved to, or loaded from, `snapshot`, which is over `ancestors`, if it is a diff.
    #[must_use]
    pub fn over(ancestors: Vec<Parent>, snapshot: Parent) -> Self {
        let mut all = ancestors;
        all.push(snapshot);
        Self(all)
    }

    /// What a diff to the files of `create` is over, with all that is below it; `None` where there is to be none.
    #[must_use]
    pub fn base_of(&self, create: &SnapshotCreate) -> Option<(Parent, Vec<Parent>)> {
        let places = [&create.snapshot_path, &create.mem_file_path].map(|path| Place::of(Path::new(path)));
        let is_in_the_way = |parent: &Parent| {
            let of = [&parent.state_path, &parent.memory_path].map(|path| Place::of(path));
            of.iter().any(|place| places.contains(place))
        };
        if self.0.len() >= CHAIN_MAX || self.0.iter().any(is_in_the_way) {
            return None;
        }
        self.0.last().map(|last| (last.clone(), self.0.clone()))
    }
}

/// Where a file is, by whichever path; by the path alone where there is none.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    File { device: u64, inode: u64 },
    Path(PathBuf),
}

impl Place {
    fn of(path: &Path) -> Self {
        match std::fs::metadata(path) {
            Ok(found) => Self::File { device: found.dev(), inode: found.ino() },
            Err(_) => Self::Path(std::path::absolute(path).unwrap_or_else(|_| path.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(folder: &Path, id: u8) -> Parent {
        let path = |kind| folder.join(format!("{id}.{kind}"));
        Parent { id: [id; 16], state_path: path("state"), memory_path: path("memory") }
    }

    fn create(state: &Path, memory: &Path) -> SnapshotCreate {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        SnapshotCreate {
            snapshot_path: text(state),
            mem_file_path: text(memory),
            ..SnapshotCreate::default()
        }
    }

    #[test]
    fn a_diff_is_over_the_last_unless_it_takes_the_place_of_any() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = [1, 2].map(|id| parent(folder.path(), id));
        let lineage = Lineage::over(vec![first.clone()], second.clone());
        let new = parent(folder.path(), 3);
        let base = lineage.base_of(&create(&new.state_path, &new.memory_path)).unwrap();
        assert_eq!(base, (second.clone(), vec![first.clone(), second.clone()]));
        assert_eq!(lineage.base_of(&create(&second.state_path, &new.memory_path)), None);
        assert_eq!(lineage.base_of(&create(&new.state_path, &first.memory_path)), None);
        // The same file by another name.
        std::fs::write(&first.memory_path, "").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&first.memory_path, &link).unwrap();
        assert_eq!(lineage.base_of(&create(&new.state_path, &link)), None);
    }

    #[test]
    fn a_chain_grows_no_longer_than_can_be_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let ancestors = |count: usize| vec![parent(folder.path(), 1); count];
        let new = create(&folder.path().join("s"), &folder.path().join("m"));
        let last = parent(folder.path(), 2);
        assert!(Lineage::over(ancestors(CHAIN_MAX - 2), last.clone()).base_of(&new).is_some());
        assert!(Lineage::over(ancestors(CHAIN_MAX - 1), last).base_of(&new).is_none());
    }
}
