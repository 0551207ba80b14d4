//! `faultless run`: one machine from one line.

use super::size::parse_mib;
use crate::types::HugePages;
use clap::Args;
use clap::builder::PossibleValue;
use std::str::FromStr;

/// Run one machine with its console on this terminal, until it powers off.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RunArgs {
    /// The kernel: an uncompressed ELF, or a distribution's bzImage.
    #[arg(long, value_name = "FILE", required_unless_present = "snapshot")]
    pub kernel: Option<String>,
    /// Go on from a snapshot, its memory served as it is wanted, in place of booting.
    #[arg(long, num_args = 2, value_names = ["STATE", "MEMORY"],
          conflicts_with_all = ["kernel", "initrd", "disks", "cmdline", "entropy", "cpus", "memory_mib", "huge_pages"])]
    pub snapshot: Option<Vec<String>>,
    /// The initial RAM disk.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<String>,
    /// A disk; repeat for more. The first is the root device. `:ro` makes it read-only.
    #[arg(long = "disk", value_name = "FILE[:ro]")]
    pub disks: Vec<DiskArg>,
    /// Number of vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub cpus: u8,
    /// Memory: a number of MiB, or like 512M or 2G.
    #[arg(long = "memory", value_name = "SIZE", default_value = "128", value_parser = parse_mib)]
    pub memory_mib: u64,
    /// The kernel's command line, in place of the default one.
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// Give the guest an entropy device.
    #[arg(long)]
    pub entropy: bool,
    /// What backs the guest's memory.
    #[arg(long, value_name = "KIND", default_value = "transparent", ignore_case = true)]
    pub huge_pages: HugePages,
}

impl clap::ValueEnum for HugePages {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::None, Self::Transparent, Self::Hugetlb2M]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::None => PossibleValue::new("none").help("pages of the host's base size"),
            Self::Transparent => {
                PossibleValue::new("transparent").help("huge pages where the host has them free")
            }
            Self::Hugetlb2M => PossibleValue::new("2M").help("reserved pages of 2 MiB from hugetlbfs"),
        })
    }
}

/// A disk, as it is given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArg {
    /// Path of the file or block device.
    pub path: String,
    /// Whether the guest may only read.
    pub is_read_only: bool,
}

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, is_read_only) = match (text.strip_suffix(":ro"), text.strip_suffix(":rw")) {
            (Some(path), _) => (path, true),
            (None, Some(path)) => (path, false),
            (None, None) => (text, false),
        };
        if path.is_empty() {
            return Err("a disk needs a path".to_owned());
        }
        Ok(Self { path: path.to_owned(), is_read_only })
    }
}
