//! Guest memory that another process serves, as Firecracker hands it over: served, lost, taken over, refused.
//!
//! No guest is needed for it: a thread that touches the memory waits as a vCPU does.
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod floods;
mod refused;
mod replaced;
mod served;

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use memory::{Backing, GuestRam, PageIndex, PageRange, RamRange};
use tests::page_handler::{self, Mode, Served};
use vm_memory::GuestAddress;
use vmm::machine::memory::handler::{HandOverError, Handed};
use vmm::machine::message::{GuestEvent, Message, Notifier};

const ANONYMOUS: Backing = Backing::Anonymous { transparent_huge_pages: false };
const THP: Backing = Backing::Anonymous { transparent_huge_pages: true };
/// How long anything that must happen may take.
const WAIT: Duration = Duration::from_secs(20);
/// How long it is looked whether something happens that must not.
const MOMENT: Duration = Duration::from_millis(300);
const PAGE_BYTES: usize = 4096;
/// Two regions, with a hole between them.
const RANGES: [RamRange; 2] = [
    RamRange { gpa: GuestAddress(0), size_bytes: 4 << 20 },
    RamRange { gpa: GuestAddress(1 << 32), size_bytes: 2 << 20 },
];
const PAGES: u64 = (6 << 20) / PAGE_BYTES as u64;

/// What the memory file has in every byte of a page: never 0, which nobody gives but the kernel.
fn content(page: u64) -> u8 {
    u8::try_from(page % 251).unwrap() + 1
}

/// RAM that nobody serves yet, a memory file for it, and where handlers can listen.
struct Stage {
    folder: tempfile::TempDir,
    ram: GuestRam,
    notifier: Notifier,
    inbox: Receiver<Message>,
}

impl Stage {
    fn new(backing: Backing) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..PAGES).flat_map(|page| [content(page); PAGE_BYTES]).collect();
        fs::write(folder.path().join("memory"), bytes).unwrap();
        let (sender, inbox) = channel();
        let ram = GuestRam::new(&RANGES, backing).unwrap();
        Self { folder, ram, notifier: Notifier::new(sender), inbox }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn listen(&self, name: &str) -> UnixListener {
        UnixListener::bind(self.path(name)).unwrap()
    }

    /// A handler on a thread, which listens at `name` when this is over.
    fn handler(&self, name: &str, mode: Mode) -> JoinHandle<io::Result<Served>> {
        let listener = self.listen(name);
        let memory = File::open(self.path("memory")).unwrap();
        thread::spawn(move || page_handler::serve(&listener, &memory, mode))
    }

    fn connect(&self, name: &str) -> Result<Handed, HandOverError> {
        Handed::connect(self.ram.clone(), &self.path(name), false, self.notifier.clone())
    }

    /// Reads the first byte of a page on a thread of its own.
    fn touch(&self, page: u64) -> Touch {
        let (sender, value) = channel();
        let ram = self.ram.clone();
        thread::spawn(move || {
            // The test may have ended.
            let _ = sender.send(read(&ram, page)[0]);
        });
        Touch(value)
    }

    fn read(&self, page: u64) -> Vec<u8> {
        read(&self.ram, page)
    }

    /// The handler's end, as the driver is told of it.
    fn told(&self) -> String {
        match self.inbox.recv_timeout(WAIT).unwrap() {
            Message::Guest(GuestEvent::HandlerGone { cause }) => cause,
            other => panic!("a handler's end was expected, not {other:?}"),
        }
    }

    fn assert_nothing_told(&self) {
        assert!(self.inbox.try_recv().is_err(), "nothing was to be told");
    }
}

fn read(ram: &GuestRam, page: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_BYTES];
    ram.read_pages(PageIndex(page).alone(), &mut bytes).unwrap();
    bytes
}

fn pages(start: u64, end: u64) -> PageRange {
    PageRange::between(PageIndex(start), PageIndex(end))
}

/// A thread that wants a page.
struct Touch(Receiver<u8>);

impl Touch {
    fn value(&self) -> u8 {
        self.0.recv_timeout(WAIT).unwrap()
    }

    fn assert_waits(&self) {
        assert_eq!(self.0.recv_timeout(MOMENT), Err(RecvTimeoutError::Timeout));
    }
}
