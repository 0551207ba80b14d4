//! The command line, and how much work it asks for.

const USAGE: &str = "usage: make bench, or: cargo bench -p tests --bench vmm -- [--quick] [--json] [PART]…
  PART      start, footprint, kick or disk: only these
  --quick   a few runs of each, to see that it works; the figures are rough
  --json    for programs";

/// What there is to measure, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Start,
    Footprint,
    Kick,
    Disk,
}

/// What the user asked for.
pub(crate) struct Options {
    pub(crate) effort: Effort,
    parts: Vec<Part>,
    pub(crate) json: bool,
}

/// How often each thing is measured.
pub(crate) struct Effort {
    /// Processes that are started, for what each does once.
    pub(crate) processes: usize,
    /// Processes whose memory is looked at.
    pub(crate) footprints: usize,
    /// Requests to one process.
    pub(crate) requests: usize,
    /// Transfers of each kind, on either side.
    pub(crate) transfers: usize,
    /// By this, a transfer's size is divided.
    pub(crate) transfer_divisor: u64,
}

const FULL: Effort =
    Effort { processes: 50, footprints: 10, requests: 1000, transfers: 11, transfer_divisor: 1 };
const QUICK: Effort = Effort { processes: 5, footprints: 2, requests: 50, transfers: 3, transfer_divisor: 8 };

impl Options {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { effort: FULL, parts: Vec::new(), json: false };
        for argument in arguments {
            match argument.as_str() {
                "--quick" => options.effort = QUICK,
                "--json" => options.json = true,
                "start" => options.parts.push(Part::Start),
                "footprint" => options.parts.push(Part::Footprint),
                "kick" => options.parts.push(Part::Kick),
                "disk" => options.parts.push(Part::Disk),
                // Cargo's own, to every bench.
                "--bench" => {}
                _ => return Err(USAGE.to_owned()),
            }
        }
        Ok(options)
    }

    /// Whether a part is wanted: all are, unless some are named.
    pub(crate) fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }
}
