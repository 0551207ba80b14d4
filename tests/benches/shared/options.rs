//! The command line of a bench: which of its parts, and how much work.
//!
//! A bench says what it can measure as a [`Menu`]; what the user asked for of it is a [`Choice`].

/// What a bench can be asked for.
pub(crate) struct Menu<P: 'static, E> {
    /// Its name, as cargo knows it.
    pub(crate) bench: &'static str,
    /// What there is to measure, each by its name on the command line, in the order of the report.
    pub(crate) parts: &'static [(&'static str, P)],
    /// How much work is done for figures to be relied on.
    pub(crate) full: E,
    /// How much is done to see that it works.
    pub(crate) quick: E,
}

/// What the user asked for.
pub(crate) struct Choice<P, E> {
    pub(crate) effort: E,
    pub(crate) json: bool,
    parts: Vec<P>,
}

impl<P: Copy + PartialEq, E> Menu<P, E> {
    /// What `arguments` ask for.
    ///
    /// # Errors
    ///
    /// How it is used, where an argument is none.
    pub(crate) fn choose(self, arguments: impl IntoIterator<Item = String>) -> Result<Choice<P, E>, String> {
        let usage = self.usage();
        let mut choice = Choice { effort: self.full, json: false, parts: Vec::new() };
        let mut quick = Some(self.quick);
        for argument in arguments {
            match argument.as_str() {
                "--quick" => choice.effort = quick.take().unwrap_or(choice.effort),
                "--json" => choice.json = true,
                // Cargo's own, to every bench.
                "--bench" => {}
                name => {
                    let part = self.parts.iter().find(|(its_name, _)| *its_name == name);
                    choice.parts.push(part.ok_or_else(|| usage.clone())?.1);
                }
            }
        }
        Ok(choice)
    }

    fn usage(&self) -> String {
        let names: Vec<_> = self.parts.iter().map(|(name, _)| *name).collect();
        format!(
            "usage: make bench-{bench}, or: cargo bench -p tests --bench {bench} -- [--quick] [--json] [PART]…
  PART      only these of: {names}
  --quick   a few runs of each, to see that it works; the figures are rough
  --json    for programs",
            bench = self.bench,
            names = names.join(", "),
        )
    }
}

impl<P: PartialEq, E> Choice<P, E> {
    /// Whether a part is wanted: all are, unless some are named.
    pub(crate) fn wants(&self, part: P) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }
}
