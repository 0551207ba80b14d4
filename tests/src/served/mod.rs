//! Guest memory that is served, as words say: over what, from what, and what goes wrong.
//!
//! | word | memory |
//! |---|---|
//! | `anonymous`, `huge`, `memfd`, `hugetlb` | of its own: base pages, transparent huge pages, a shared memfd, hugetlb |
//! | `clone`, `shared` | over a memfd that has the content already, privately or not |
//!
//! | word | source |
//! |---|---|
//! | `image=PATH` | a file ([`content::image`]); without a word, the same content without one |
//! | `scripted`, `rough=SEED` | answers as it should, or in every way a caller has to live with |
//! | `lost=PAGE`, `flaky=PAGE:N`, `never=PAGE` | and a page is lost, or lost N times, or not answered for |
//! | `dies=N`, `panics=N` | and the source is gone after N answers, or its thread is |
//!
//! | word | engine |
//! |---|---|
//! | `reader`, `fill` | whole chunks are filled, or all of it in the background |
//! | `patience=MS` | how long an answer may take |
//! | `protect` | all is write-protected from the start, and what is written is compared before |

pub mod content;
mod observer;
mod outcome;
mod scripted;

use std::io;
use std::num::ParseIntError;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use memory::fault::{FillOptions, Limits, Options};
use memory::source::scripted::{Script, Trouble};
use memory::source::{Image, ImageError, ImageReader, InPlaceSource, PageReader, PageSource, Reading};
use memory::{Backing, PageIndex, Sharing};
use thiserror::Error;
use vmm::machine::memory::{Foundation, MemoryPlan, ServedPlan};

use content::GuestContent;
pub use outcome::Outcome;
use scripted::Painted;

/// The RAM of the guest.
pub const RAM_MIB: u64 = 32;
/// The seed that the guest's `walk` is to be told.
pub const SEED: u64 = 7;
/// How much of its RAM has content: all but what the guest itself is in.
pub const CONTENT_MIB: u64 = RAM_MIB - 2;

/// Why memory cannot be served as the words say.
#[derive(Debug, Error)]
pub enum PlanError {
    /// A word is none.
    #[error("{0:?} says nothing about memory: the words are in tests/src/served")]
    Word(String),
    /// A number is none.
    #[error("{word:?} should have a number")]
    Number {
        /// Where.
        word: String,
        /// Why not.
        source: ParseIntError,
    },
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The host.
    #[error("the host refuses a memfd or a timer")]
    Host(#[from] io::Error),
}

/// What the words have said so far.
struct Words {
    backing: Backing,
    clone: Option<Sharing>,
    image: Option<String>,
    script: Option<Script>,
    panics_after: Option<u64>,
    limits: Limits,
    reads: bool,
    fills: bool,
    protects: bool,
}

/// The plan that `words` say, and what to look at when it was carried out.
///
/// # Errors
///
/// [`PlanError`] for words that say nothing, and what the host refuses.
pub fn plan(words: &str) -> Result<(MemoryPlan, Outcome), PlanError> {
    let words = Words::read(words)?;
    let mut outcome = Outcome::default();
    let memfd = words.clone.map(|_| content::memfd()).transpose()?;
    let source = words.source(memfd.as_ref())?;
    let reader = words.reader()?;
    let foundation = match (memfd, words.clone) {
        (Some(memfd), Some(sharing)) => {
            if sharing == Sharing::Private {
                outcome.keeps(memfd.try_clone()?);
            }
            Foundation::Memfd(memfd, sharing)
        }
        _ => Foundation::New(words.backing),
    };
    let fill = FillOptions { everything: words.fills, ..FillOptions::default() };
    let options = Options { limits: words.limits, fill, write_protect: words.protects, ..Options::default() };
    let started = Some(outcome.observe(words.protects));
    let plan = ServedPlan { foundation, source, reader, again: None, options, working_set: None, started };
    Ok((MemoryPlan::Served(Box::new(plan)), outcome))
}

impl Words {
    fn read(text: &str) -> Result<Self, PlanError> {
        let mut words = Self {
            backing: Backing::Anonymous { transparent_huge_pages: false },
            clone: None,
            image: None,
            script: None,
            panics_after: None,
            limits: Limits::default(),
            reads: false,
            fills: false,
            protects: false,
        };
        for word in text.split(',') {
            match word.split_once('=') {
                Some((name, value)) => words.set(word, name, value)?,
                None => words.take(word)?,
            }
        }
        Ok(words)
    }

    fn take(&mut self, word: &str) -> Result<(), PlanError> {
        match word {
            "anonymous" => self.backing = Backing::Anonymous { transparent_huge_pages: false },
            "huge" => self.backing = Backing::Anonymous { transparent_huge_pages: true },
            "memfd" => self.backing = Backing::Memfd { transparent_huge_pages: false },
            "hugetlb" => self.backing = Backing::Hugetlb2M,
            "clone" => self.clone = Some(Sharing::Private),
            "shared" => self.clone = Some(Sharing::Shared),
            "scripted" => drop(self.script()),
            "reader" => self.reads = true,
            "fill" => (self.reads, self.fills) = (true, true),
            "protect" => self.protects = true,
            _ => return Err(PlanError::Word(word.to_owned())),
        }
        Ok(())
    }

    fn set(&mut self, word: &str, name: &str, value: &str) -> Result<(), PlanError> {
        let number = |text: &str| {
            text.parse::<u64>().map_err(|source| PlanError::Number { word: word.to_owned(), source })
        };
        let (page, times) = value.split_once(':').unwrap_or((value, "1"));
        let trouble = |words: &mut Self, trouble| {
            let page = PageIndex(number(page)?);
            words.script().troubles.insert(page, trouble);
            Ok::<_, PlanError>(())
        };
        match name {
            "image" => self.image = Some(value.to_owned()),
            "rough" => self.script = Some(Script { pattern: |_| Some(1), ..Script::rough(number(value)?) }),
            "lost" => trouble(self, Trouble::Lost)?,
            "flaky" => trouble(self, Trouble::LostTimes(number(times)?))?,
            "never" => trouble(self, Trouble::Never)?,
            "dies" => self.script().dies_after = Some(number(value)?),
            "patience" => self.limits.answer_ticks_max = number(value)?,
            "panics" => {
                self.script();
                self.panics_after = Some(number(value)?);
            }
            _ => return Err(PlanError::Word(word.to_owned())),
        }
        Ok(())
    }

    fn script(&mut self) -> &mut Script {
        self.script.get_or_insert_with(|| Script { pattern: |_| Some(1), ..Script::default() })
    }

    fn source(&self, memfd: Option<&OwnedFd>) -> Result<Box<dyn PageSource>, PlanError> {
        if let Some(memfd) = memfd {
            return Ok(Box::new(InPlaceSource::new(memfd.try_clone()?)));
        }
        match &self.script {
            Some(script) => Ok(Box::new(Painted::new(script.clone(), self.panics_after)?)),
            None => Ok(Box::new(Reading::new(self.content()?))),
        }
    }

    fn reader(&self) -> Result<Option<Box<dyn PageReader>>, PlanError> {
        if self.reads { self.content().map(Some) } else { Ok(None) }
    }

    fn content(&self) -> Result<Box<dyn PageReader>, PlanError> {
        match &self.image {
            Some(path) => {
                let image = Image::open(&[path], RAM_MIB << 20)?;
                Ok(Box::new(ImageReader::new(Arc::new(image))))
            }
            None => Ok(Box::new(GuestContent)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_say_nothing_are_refused() {
        assert!(plan("anonymous,lost=4096,rough=3").is_ok());
        assert!(matches!(plan("anonymous,quick"), Err(PlanError::Word(word)) if word == "quick"));
        assert!(matches!(plan("lost=many"), Err(PlanError::Number { .. })));
        assert!(matches!(plan("image=/no/such/file"), Err(PlanError::Image(_))));
    }
}
