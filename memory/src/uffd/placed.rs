//! What became of a verb: how far the kernel came with a range, and what stopped it.

use super::ioctl::{Answer, mode};
use crate::page::{PageRange, PageSize};

/// Whether threads that wait for the pages go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// They do.
    Now,
    /// They wait for a wake of its own.
    Later,
}

impl Wake {
    pub(super) const fn bit(self) -> u64 {
        match self {
            Self::Now => 0,
            Self::Later => mode::DONTWAKE,
        }
    }
}

/// What stopped the kernel before the end of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Stop {
    /// `EAGAIN`: what follows has a page already, or the mappings are changing, for example because a removal is
    /// unread. Asking for the rest tells which.
    #[error("try again")]
    Again,
    /// `EEXIST`: the page is there already. Nobody was woken.
    #[error("the page is there already")]
    Exists,
    /// `ENOENT`: the range is not registered, or not for this.
    #[error("the memory is not registered for this")]
    NotRegistered,
    /// `ESRCH`: the process whose memory it is has ended.
    #[error("the process is gone")]
    ProcessGone,
    /// `EFAULT`: the source cannot be read; of CONTINUE, that the page cache has no such page.
    #[error("there is no page to place")]
    NoSource,
    /// `ENOMEM`: the host has no memory.
    #[error("the host is out of memory")]
    NoMemory,
    /// `EBUSY`: a page to be moved is in use elsewhere.
    #[error("the page is in use")]
    Busy,
    /// `EINVAL`: not with this memory, or not on this kernel.
    #[error("this memory or kernel does not support it")]
    Unsupported,
    /// Any other error number.
    #[error("error number {0}")]
    Other(i32),
}

impl Stop {
    /// What an error number means.
    #[must_use]
    pub const fn of_errno(errno: i32) -> Self {
        match errno {
            libc::EAGAIN => Self::Again,
            libc::EEXIST => Self::Exists,
            libc::ENOENT => Self::NotRegistered,
            libc::ESRCH => Self::ProcessGone,
            libc::EFAULT => Self::NoSource,
            libc::ENOMEM => Self::NoMemory,
            libc::EBUSY => Self::Busy,
            libc::EINVAL => Self::Unsupported,
            other => Self::Other(other),
        }
    }
}

/// How far the kernel came with a range.
#[must_use = "what is not placed has somebody waiting for it"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// How many pages, from its start.
    pub pages: u64,
    /// What stopped it before the end.
    pub stop: Option<Stop>,
}

impl Placed {
    pub(super) fn of(range: PageRange, answer: Answer) -> Self {
        if answer.errno == 0 {
            return Self { pages: range.count, stop: None };
        }
        // A negative count repeats the error.
        let bytes = u64::try_from(answer.done).unwrap_or(0);
        Self { pages: bytes / PageSize::Base4K.bytes(), stop: Some(Stop::of_errno(answer.errno)) }
    }
}
