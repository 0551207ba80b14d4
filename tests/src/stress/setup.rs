//! Memory, and where its content comes from.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use memory::source::pattern::{Pattern, PatternReader, Sequence, fill_page};
use memory::source::scripted::{Script, ScriptedSource, Trouble};
use memory::source::{DirectSource, Image, ImageReader, InPlaceSource, PageReader, PageSource, Reading};
use memory::{Backing, GuestRam, PageIndex, PageRange, RamRange, Sharing};
use vm_memory::GuestAddress;

use super::content::PAGE;
use super::scenario::{Kind, Origin, Scenario};
use super::whole::Whole;

/// Where content may come from, whatever engine serves.
pub(super) struct Content {
    pattern: Pattern,
    pages: u64,
    image: Arc<Image>,
    template: Option<GuestRam>,
    _folder: tempfile::TempDir,
}

/// The memory of a scenario, and its content.
pub(super) fn prepare(scenario: &Scenario) -> (GuestRam, Content) {
    let (pattern, pages) = (scenario.pattern(), scenario.pages);
    let ranges = ranges(scenario);
    let own = |backing| GuestRam::new(&ranges, backing).expect("the host has memory for a round");
    let template = (scenario.kind == Kind::Clone).then(|| template(&ranges, pattern));
    let chance = Sequence::new(scenario.seed ^ 1);
    let ram = match scenario.kind {
        Kind::Anonymous => own(Backing::Anonymous { transparent_huge_pages: false }),
        Kind::HugePages => own(Backing::Anonymous { transparent_huge_pages: true }),
        Kind::Memfd => own(Backing::Memfd { transparent_huge_pages: chance.clone().happens(50) }),
        Kind::Hugetlb => own(Backing::Hugetlb2M),
        Kind::HugetlbMemfd => own(Backing::HugetlbMemfd { sharing: Sharing::Shared }),
        Kind::Clone => {
            let memfd = memfd_of(template.as_ref().expect("a clone has a template"));
            GuestRam::over_memfd(&ranges, memfd, Sharing::Private).expect("the template is as large")
        }
    };
    let folder = tempfile::tempdir().expect("there is room for a temporary folder");
    let image = Arc::new(image(folder.path(), pattern, pages, chance));
    (ram, Content { pattern, pages, image, template, _folder: folder })
}

fn ranges(scenario: &Scenario) -> Vec<RamRange> {
    let size_bytes = scenario.pages * PAGE as u64;
    let first = if scenario.is_split { 2 << 20 } else { size_bytes };
    let range = |gpa, size_bytes| RamRange { gpa: GuestAddress(gpa), size_bytes };
    let ranges = [range(0, first), range(4 << 30, size_bytes - first)];
    ranges.into_iter().filter(|range| range.size_bytes > 0).collect()
}

/// What clones share: a memfd that has all the content, with holes where it is zero.
fn template(ranges: &[RamRange], pattern: Pattern) -> GuestRam {
    let template = GuestRam::new(ranges, Backing::Memfd { transparent_huge_pages: false });
    let template = template.expect("the host has memory for a template");
    let mut bytes = [0; PAGE];
    for page in template.pages().pages() {
        if let Some(seed) = pattern(page) {
            fill_page(page, seed, &mut bytes);
            template.write_cached(page.alone(), &bytes).expect("the template's memfd can be written");
        }
    }
    template
}

fn memfd_of(template: &GuestRam) -> OwnedFd {
    let memfd = template.memfd().expect("a template is a memfd");
    memfd.try_clone_to_owned().expect("there are descriptors left")
}

/// A base with holes, and a diff over it: what the diff has is something else below.
fn image(folder: &Path, pattern: Pattern, pages: u64, mut chance: Sequence) -> Image {
    let paths: [PathBuf; 2] = ["base", "diff"].map(|name| folder.join(name));
    let files = paths.each_ref().map(|path| {
        let file = File::create_new(path).expect("the folder is fresh");
        file.set_len(pages * PAGE as u64).expect("a sparse file has room");
        file
    });
    let mut bytes = [0; PAGE];
    for page in (0..pages).map(PageIndex) {
        let mut write = |file: &File, seed: Option<u64>| {
            match seed {
                Some(seed) => fill_page(page, seed, &mut bytes),
                None => bytes.fill(0),
            }
            file.write_all_at(&bytes, page.offset()).expect("there is room for an image");
        };
        let seed = pattern(page);
        if chance.happens(25) {
            write(&files[0], Some(99));
            write(&files[1], seed);
        } else if seed.is_some() {
            write(&files[0], seed);
        }
    }
    Image::open(&paths, pages * PAGE as u64).expect("what was just written is an image")
}

impl Content {
    /// A source of it.
    pub(super) fn source(&self, origin: Origin) -> Box<dyn PageSource> {
        let buffered = || Box::new(Reading::new(ImageReader::new(Arc::clone(&self.image))));
        match origin {
            Origin::Pattern => Box::new(Reading::new(self.reader_of_pattern())),
            Origin::Image => buffered(),
            Origin::Direct => match DirectSource::open(Arc::clone(&self.image)) {
                Ok(direct) => Box::new(direct),
                // A file system in memory cannot do without the page cache.
                Err(_) => buffered(),
            },
            Origin::InPlace => {
                Box::new(InPlaceSource::new(memfd_of(self.template.as_ref().expect("only clones ask"))))
            }
            Origin::Rough(seed) => self.scripted(self.rough(seed)),
            Origin::Whole => Box::new(Whole::new(self.reader_of_pattern())),
            Origin::Dying(answers) => {
                self.scripted(Script { dies_after: Some(answers), ..self.rough(answers) })
            }
        }
    }

    /// A reader of it, for a filler.
    pub(super) fn reader(&self, chance: &mut Sequence) -> Box<dyn PageReader> {
        if chance.happens(50) {
            return Box::new(ImageReader::new(Arc::clone(&self.image)));
        }
        Box::new(self.reader_of_pattern())
    }

    fn reader_of_pattern(&self) -> PatternReader {
        PatternReader { pattern: self.pattern, pages: self.pages }
    }

    fn scripted(&self, script: Script) -> Box<dyn PageSource> {
        Box::new(ScriptedSource::new(script, self.pages).expect("the host gives a timer").0)
    }

    fn rough(&self, seed: u64) -> Script {
        let mut chance = Sequence::new(seed);
        let lost = |chance: &mut Sequence| (PageIndex(chance.below(self.pages)), 1 + chance.below(3));
        let troubles = (0..chance.below(60)).map(|_| lost(&mut chance)).collect::<Vec<_>>();
        Script {
            pattern: self.pattern,
            tick: Duration::from_micros(chance.below(300)),
            troubles: troubles.into_iter().map(|(page, times)| (page, Trouble::LostTimes(times))).collect(),
            ..Script::rough(seed)
        }
    }
}

/// Where a page is in the guest.
pub(super) fn address(ram: &GuestRam, page: u64) -> GuestAddress {
    let offset = PageIndex(page).offset();
    let region = ram.regions().iter().rev().find(|region| region.offset_in_file() <= offset);
    let region = region.expect("the first region is at the start");
    GuestAddress(region.range().gpa.0 + offset - region.offset_in_file())
}

/// One page.
pub(super) fn alone(page: u64) -> PageRange {
    PageIndex(page).alone()
}
