//! How a guest learns that it is not what it was: that it is a clone, or on another host.
//!
//! ```text
//!   renew()  1. ID, VMClock ──▶ guest RAM, in pages that the guest was told to keep out of
//!            2. line ──▶ Generic Event Device ──_EVT──▶ Notify 0x80 ──▶ vmgenid, vmclock
//! ```
//!
//! A guest that is restored from a snapshot has the state of a random number generator that others have too, who were
//! restored from the same one. The generation ID ("Virtual Machine Generation ID", Microsoft, 2012) is a random number
//! in the guest's memory that differs in each of them. Linux compares it when it is notified (`drivers/virt/vmgenid.c`,
//! since 5.18), and where it has changed mixes it into its generator and reseeds that at once: "crng reseeded due to
//! virtual machine fork". Nothing else here reseeds a guest.
//!
//! The VMClock (UAPI.13) tells user space the same by counters in a page that it may map, and tells of a live migration
//! too, after which the guest is still the only one of its kind, but time must be measured anew:
//!
//! | what happened | generation ID | generation counter | disruption marker |
//! |---|---|---|---|
//! | restored from a snapshot: [`renew`](Generation::renew) | new | + 1 | + 1 |
//! | migrated: [`moved`](Generation::moved) | | | + 1 |
//! | paused, resumed, rebooted | | | |
//!
//! Invariants:
//!
//! - What a guest writes into these pages, its own memory, changes nothing here: all of it is written again.
//! - A reader of the VMClock that keeps to its sequence count sees all of a change or nothing of it.

mod clock;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use memory::GuestRam;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::interrupt::Interrupt;
use crate::random::fill_random;
use clock::offset;
pub use clock::{ClockCounters, PAGE_BYTES as CLOCK_PAGE_BYTES};

/// The size of a generation ID in bytes.
pub const ID_BYTES: usize = 16;
/// What a generation ID has to be aligned to, in bytes.
const ID_ALIGNMENT: u64 = 8;

/// The version of [`GenerationState`] that is written.
pub const GENERATION_STATE_VERSION: u32 = 1;

/// Why a guest could not be told.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// The host has no randomness.
    #[error("the host gave no random number for a generation ID: see whether getrandom(2) works there")]
    Random(#[source] io::Error),
    /// An address that is not aligned.
    #[error(
        "the generation ID at {id:#x} or the VMClock at {clock:#x} is not aligned: the state is damaged, take another"
    )]
    Unaligned {
        /// The guest physical address of the ID.
        id: u64,
        /// The guest physical address of the VMClock.
        clock: u64,
    },
    /// Guest memory does not reach that far.
    #[error("guest memory does not hold the generation ID and the VMClock: give the guest at least 1 MiB")]
    Memory(#[from] GuestMemoryError),
    /// The guest could not be notified; what it is to read is written.
    #[error("cannot raise the interrupt that tells a guest of its generation: restore it once more")]
    Interrupt(#[source] io::Error),
    /// The saved state is of a version that this program does not know.
    #[error(
        "the generation was saved in version {found}, and this program knows up to {GENERATION_STATE_VERSION}: \
         use the program that saved it, or a newer one"
    )]
    Version {
        /// The version found.
        found: u32,
    },
}

/// Where a guest looks, in guest physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The generation ID: [`ID_BYTES`], aligned to 8 bytes.
    pub id: u64,
    /// The VMClock: [`CLOCK_PAGE_BYTES`], aligned to as many.
    pub clock: u64,
}

/// A generation as it is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationState {
    /// [`GENERATION_STATE_VERSION`] when it was saved.
    pub version: u32,
    /// Where the guest was told to look.
    pub place: Place,
    /// The generation ID.
    pub id: [u8; ID_BYTES],
    /// The VMClock.
    pub clock: ClockCounters,
}

/// What happened to a guest that it is to know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disruption {
    /// It goes on elsewhere, and nowhere else.
    Moved,
    /// It goes on from a past that others may go on from too.
    Cloned,
}

/// The generation ID and the VMClock of a guest.
pub struct Generation {
    ram: GuestRam,
    line: Arc<dyn Interrupt>,
    place: Place,
    id: [u8; ID_BYTES],
    clock: ClockCounters,
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Generation {
    /// Those of a new guest, which finds them in `ram` at `place` and is told of changes through `line`.
    ///
    /// # Errors
    ///
    /// [`GenerationError`] but for `Interrupt` and `Version`.
    pub fn attach(ram: GuestRam, place: Place, line: Arc<dyn Interrupt>) -> Result<Self, GenerationError> {
        let place = checked(place)?;
        let generation = Self { ram, line, place, id: random_id()?, clock: ClockCounters::default() };
        generation.write_id()?;
        generation.ram.write_slice(&generation.clock.page(), GuestAddress(place.clock))?;
        Ok(generation)
    }

    /// Those that `state` was saved from. Guest memory is to be as it was saved too, and is not touched: who tells the
    /// guest what happened is [`renew`](Self::renew) or [`moved`](Self::moved).
    ///
    /// # Errors
    ///
    /// [`GenerationError::Version`], or `Unaligned`.
    pub fn restore(
        state: &GenerationState,
        ram: GuestRam,
        line: Arc<dyn Interrupt>,
    ) -> Result<Self, GenerationError> {
        if state.version != GENERATION_STATE_VERSION {
            return Err(GenerationError::Version { found: state.version });
        }
        Ok(Self { ram, line, place: checked(state.place)?, id: state.id, clock: state.clock })
    }

    /// What is to be saved.
    #[must_use]
    pub fn state(&self) -> GenerationState {
        let Self { place, id, clock, .. } = *self;
        GenerationState { version: GENERATION_STATE_VERSION, place, id, clock }
    }

    /// Tells the guest that it was restored from a snapshot, which others may be restored from too.
    ///
    /// To be called once the interrupt controllers and the vCPUs have their state, since setting it undoes an interrupt,
    /// and best before any vCPU runs: a guest that runs already draws from the generator that others have too, until it
    /// has taken the interrupt.
    ///
    /// # Errors
    ///
    /// [`GenerationError`] but for `Unaligned` and `Version`. After `Random` nothing has changed.
    pub fn renew(&mut self) -> Result<(), GenerationError> {
        self.id = random_id()?;
        self.write_id()?;
        self.tell(Disruption::Cloned)
    }

    /// Tells the guest that it was migrated: time is to be measured anew, and nothing else. When to call it is as with
    /// [`renew`](Self::renew).
    ///
    /// # Errors
    ///
    /// [`GenerationError::Memory`], or `Interrupt`.
    pub fn moved(&mut self) -> Result<(), GenerationError> {
        self.tell(Disruption::Moved)
    }

    fn tell(&mut self, disruption: Disruption) -> Result<(), GenerationError> {
        let changing = self.clock.changing();
        self.clock = self.clock.after(disruption);
        self.write_clock(changing)?;
        self.line.trigger().map_err(GenerationError::Interrupt)
    }

    fn write_id(&self) -> Result<(), GuestMemoryError> {
        self.ram.write_slice(&self.id, GuestAddress(self.place.id))
    }

    /// Writes all of the VMClock, whatever the guest has made of it, under a sequence count that is odd meanwhile.
    fn write_clock(&self, changing: u32) -> Result<(), GuestMemoryError> {
        let field = |offset: usize| GuestAddress(self.place.clock + offset as u64);
        let page = self.clock.page();
        self.ram.store(changing.to_le(), field(offset::SEQ_COUNT), Ordering::Relaxed)?;
        // Nobody sees what follows without having seen the odd count.
        fence(Ordering::Release);
        self.ram.write_slice(&page[..offset::SEQ_COUNT], field(0))?;
        self.ram.write_slice(&page[offset::DISRUPTION_MARKER..], field(offset::DISRUPTION_MARKER))?;
        self.ram.store(self.clock.seq_count.to_le(), field(offset::SEQ_COUNT), Ordering::Release)
    }
}

/// A place that is aligned: what is written there is then whole for whoever reads it meanwhile.
fn checked(place: Place) -> Result<Place, GenerationError> {
    let Place { id, clock } = place;
    if id.is_multiple_of(ID_ALIGNMENT) && clock.is_multiple_of(CLOCK_PAGE_BYTES.into()) {
        Ok(place)
    } else {
        Err(GenerationError::Unaligned { id, clock })
    }
}

fn random_id() -> Result<[u8; ID_BYTES], GenerationError> {
    let mut id = [0; ID_BYTES];
    fill_random(&mut id).map_err(GenerationError::Random)?;
    Ok(id)
}

#[cfg(test)]
mod tests;
