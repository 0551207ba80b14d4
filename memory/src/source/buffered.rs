//! An image, read through the page cache.
//!
//! Several guests of one image share what is cached of it. A page is copied once, straight to where it was asked for;
//! whether it is zero is known by the image's holes, and its bytes are not looked at.

use std::sync::Arc;

use super::SourceError;
use super::buffer::bytes_of;
use super::image::{Image, Origin, Run};
use super::reader::{Content, PageReader};
use crate::page::PageRange;

/// A reader of an image.
#[derive(Debug, Clone)]
pub struct ImageReader {
    image: Arc<Image>,
}

impl ImageReader {
    /// A reader of `image`.
    #[must_use]
    pub fn new(image: Arc<Image>) -> Self {
        Self { image }
    }
}

impl PageReader for ImageReader {
    fn name(&self) -> &'static str {
        "image"
    }

    fn read(&mut self, range: PageRange, into: &mut [u8]) -> Result<Content, SourceError> {
        assert_eq!(range.bytes(), into.len() as u64, "as many bytes as pages");
        let (mut rest, mut into) = (range, into);
        while !rest.is_empty() {
            let run = self.image.first_run(rest)?;
            if run == (Run { range, origin: Origin::Zero }) {
                return Ok(Content::Zero);
            }
            let (place, later) = into.split_at_mut(bytes_of(run.range.count));
            match run.origin {
                Origin::Zero => place.fill(0),
                Origin::Layer(layer) => self.image.read(layer, run.range, place)?,
            }
            (rest, into) = (PageRange::between(run.range.end(), rest.end()), later);
        }
        Ok(Content::Bytes)
    }
}

#[cfg(test)]
mod tests;
