//! Everything that can be wrong with a file, and every moment at which a save can be cut off.

mod aside;
mod cut_off;
mod damage;
mod format;
mod reading;

use super::*;

const ID: SnapshotId = SnapshotId(*b"a snapshot's id.");

/// A small file, with bodies of awkward lengths.
fn small() -> Vec<u8> {
    let mut builder = Builder::new(ID);
    builder.add(Kind::META, 1, 0, b"who".to_vec());
    builder.add(Kind::VCPU, 3, 0, vec![7; 8]).add(Kind::VCPU, 3, 1, Vec::new());
    builder.add_optional(Kind::DEVICE_RTC, 1, 0, vec![1; 9]);
    builder.finish().unwrap()
}
