//! A terminal without a screen: what the VMM's stdin and stdout are where a person types.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use super::{POLL_INTERVAL, WAIT};

/// A pseudo-terminal. The user's side stays open here, so that its settings can be looked at when the process has ended.
pub struct Terminal {
    controller: OwnedFd,
    user: OwnedFd,
    first_settings: String,
}

impl Terminal {
    pub(super) fn open() -> Self {
        let controller =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("the host has pseudo-terminals");
        grantpt(&controller).and_then(|()| unlockpt(&controller)).expect("a new terminal can be unlocked");
        let name = ptsname(&controller, Vec::new()).expect("a terminal has a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let user = rustix::fs::open(name, flags, Mode::empty()).expect("a new terminal can be opened");
        let first_settings = settings(&user);
        Self { controller, user, first_settings }
    }

    /// The user's side, for a process.
    pub(super) fn stdio(&self) -> Stdio {
        clone(&self.user).into()
    }

    /// What types on it.
    pub fn keyboard(&self) -> File {
        clone(&self.controller).into()
    }

    pub(super) fn screen(&self) -> File {
        clone(&self.controller).into()
    }

    /// Its settings, in a form to compare and print.
    pub fn settings(&self) -> String {
        settings(&self.user)
    }

    /// Its settings before there was a process.
    pub fn first_settings(&self) -> &str {
        &self.first_settings
    }

    /// Waits until keys reach the program one by one: then it has taken the terminal.
    pub fn wait_until_raw(&self) {
        let deadline = Instant::now() + WAIT;
        while !self.is_raw() {
            assert!(Instant::now() < deadline, "the terminal is not raw after {WAIT:?}");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Whether keys reach the program one by one, without an echo and without raising signals.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.user).expect("a terminal has settings").local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}

fn settings(user: &OwnedFd) -> String {
    format!("{:?}", tcgetattr(user).expect("a terminal has settings"))
}

fn clone(fd: &OwnedFd) -> OwnedFd {
    fd.try_clone().expect("a process can have another descriptor")
}
