//! Structures of the kernel's user interface, saved as their bytes.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A structure that the kernel has promised not to change, as what is in memory of it: little-endian, and of its
/// length exactly.
#[derive(Clone, Copy)]
pub struct Uapi<T>(pub T);

impl<T: fmt::Debug> fmt::Debug for Uapi<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl<T: IntoBytes + Immutable> PartialEq for Uapi<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes() == other.0.as_bytes()
    }
}

impl<T: IntoBytes + Immutable> Serialize for Uapi<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.as_bytes())
    }
}

impl<'de, T: FromBytes> Deserialize<'de> for Uapi<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(OfLength(PhantomData))
    }
}

/// Takes as many bytes as `T` has, and no others.
struct OfLength<T>(PhantomData<T>);

impl<T: FromBytes> Visitor<'_> for OfLength<T> {
    type Value = Uapi<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes", size_of::<T>())
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        T::read_from_bytes(bytes).map(Uapi).map_err(|_| E::invalid_length(bytes.len(), &self))
    }
}
