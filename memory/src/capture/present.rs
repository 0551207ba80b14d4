//! RAM that no engine serves, as that of a guest that was booted: it has one for as long as a capture takes.
//!
//! Pages that were never touched are not there, and the engine gives them as the kernel would: zeros, or what a memfd
//! has. Which ones those are is looked up once the memory is registered, since no page comes without the engine then.

use std::io;
use std::sync::Arc;

use super::error::{PresentError, ReleaseError};
use crate::fault::{FaultEngine, Options, ServedMemory};
use crate::image::{data_of, read_all};
use crate::page::{PageRange, PageSize};
use crate::ram::{BackingKind, GuestRam};
use crate::source::{Content, InPlaceSource, PageReader, PageSource, Reading, SourceError, ZeroSource};
use crate::uffd::Pagemap;

/// RAM with an engine that is there for captures alone.
pub struct Present {
    engine: Option<Arc<FaultEngine>>,
}

/// Gives `ram` an engine, so that it can be captured. The guest may run.
///
/// # Errors
///
/// [`PresentError`]. The RAM is as it was, without a userfaultfd.
pub fn serve_present(ram: GuestRam) -> Result<Present, PresentError> {
    if ram.backing().kind() == BackingKind::File {
        return Err(PresentError::File);
    }
    let source = source_of(&ram).map_err(PresentError::Backed)?;
    let pagemap = Pagemap::open().map_err(PresentError::Backed)?;
    let mut memory = ServedMemory::new(ram, true)?;
    // Wherever this fails from here on, the RAM is let go.
    memory.leave_missing_to_kernel();
    assume_known(&memory, &pagemap).map_err(PresentError::Backed)?;
    let options = Options { write_protect: true, ..Options::default() };
    let engine = FaultEngine::resume(memory, source, None, &options)?;
    Ok(Present { engine: Some(Arc::new(engine)) })
}

/// What gives pages that were never touched.
fn source_of(ram: &GuestRam) -> io::Result<Box<dyn PageSource>> {
    Ok(match (ram.memfd(), ram.backing().page_size()) {
        (Some(memfd), PageSize::Base4K) => Box::new(InPlaceSource::new(memfd.try_clone_to_owned()?)),
        // Of hugetlb's no holes are told, so it is not known which pages are in place.
        (Some(_), PageSize::Huge2M) => Box::new(Reading::new(Untouched(ram.clone()))),
        (None, _) => Box::new(ZeroSource::default()),
    })
}

/// Says of the pages that are there that they are.
fn assume_known(memory: &ServedMemory, pagemap: &Pagemap) -> io::Result<()> {
    let ram = memory.ram();
    pagemap.known(ram, ram.pages(), &mut |range| memory.assume_present(range))?;
    // hugetlb tells no holes.
    if let Some(memfd) = ram.memfd().filter(|_| ram.backing().page_size() == PageSize::Base4K) {
        data_of(memfd, ram.pages())?.into_iter().for_each(|range| memory.assume_present(range));
    }
    Ok(())
}

impl Present {
    /// What captures are begun with.
    #[must_use]
    pub fn engine(&self) -> &Arc<FaultEngine> {
        self.engine.as_ref().expect("only what consumes it takes it")
    }

    /// What pages hold that were never touched: for [`Capture::save`](super::Capture::save).
    #[must_use]
    pub fn untouched(&self) -> Untouched {
        Untouched(self.engine().ram().clone())
    }

    /// Gives the RAM back without a userfaultfd.
    ///
    /// # Errors
    ///
    /// [`ReleaseError`].
    pub fn release(mut self) -> Result<GuestRam, ReleaseError> {
        self.engine.take().map_or_else(|| unreachable!("only what consumes it takes it"), release)
    }
}

impl Drop for Present {
    /// Where a capture has the engine yet, that serves until it is gone, and lets go of the RAM then.
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            drop(release(engine));
        }
    }
}

fn release(engine: Arc<FaultEngine>) -> Result<GuestRam, ReleaseError> {
    let engine = Arc::try_unwrap(engine).map_err(ReleaseError::Busy)?;
    let memory = engine.stop().memory;
    // What is missing is as the kernel gives it.
    memory.assume_present(memory.ram().pages());
    memory.release().map_err(|(memory, source)| ReleaseError::Kernel { memory, source })
}

/// What pages hold that were never touched: zeros, or what the memfd has.
#[derive(Debug)]
pub struct Untouched(GuestRam);

impl PageReader for Untouched {
    fn name(&self) -> &'static str {
        "untouched"
    }

    fn read(&mut self, range: PageRange, into: &mut [u8]) -> Result<Content, SourceError> {
        let Some(memfd) = self.0.memfd() else { return Ok(Content::Zero) };
        read_all(memfd, range, into).map_err(|source| SourceError::Read { range, source })?;
        Ok(Content::Bytes)
    }
}
