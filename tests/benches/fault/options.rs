//! The command line, and how much work it asks for.

const USAGE: &str = "usage: make bench, or: cargo bench -p tests --bench fault -- [--quick] [--json] [PART]…
  PART      demand, fill, walk, threads, memory, around or protect: only these
  --quick   a few runs of each, to see that it works; the figures are rough
  --json    for programs";

/// What there is to measure, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Demand,
    Fill,
    Walk,
    Threads,
    Memory,
    Around,
    Protect,
}

/// What the user asked for.
pub(crate) struct Options {
    pub(crate) effort: Effort,
    parts: Vec<Part>,
    pub(crate) json: bool,
}

/// How often each thing is measured, and on how much memory.
pub(crate) struct Effort {
    /// Rounds, in each of which every contender has its turn.
    pub(crate) rounds: usize,
    /// Idle seconds.
    pub(crate) idles: usize,
    /// A power of two, as all these.
    pub(crate) demand_mib: u64,
    pub(crate) fill_mib: u64,
    pub(crate) walk_mib: u64,
    pub(crate) arm_mib: u64,
}

const FULL: Effort =
    Effort { rounds: 15, idles: 4, demand_mib: 64, fill_mib: 256, walk_mib: 64, arm_mib: 1024 };
const QUICK: Effort = Effort { rounds: 3, idles: 1, demand_mib: 8, fill_mib: 32, walk_mib: 64, arm_mib: 128 };

impl Options {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { effort: FULL, parts: Vec::new(), json: false };
        for argument in arguments {
            match argument.as_str() {
                "--quick" => options.effort = QUICK,
                "--json" => options.json = true,
                "demand" => options.parts.push(Part::Demand),
                "fill" => options.parts.push(Part::Fill),
                "walk" => options.parts.push(Part::Walk),
                "threads" => options.parts.push(Part::Threads),
                "memory" => options.parts.push(Part::Memory),
                "around" => options.parts.push(Part::Around),
                "protect" => options.parts.push(Part::Protect),
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
