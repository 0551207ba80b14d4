//! What `make stress` runs: rounds of random work on lazily served memory, checked byte by byte, for as long as asked.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use memory::source::pattern::Sequence;
use tests::stress::{self, Extras, Seen};

const USAGE: &str =
    "usage: make stress STRESS_ARGS='[--seconds N] [--seed S | --round R] [--quick] [--no-swap] [--no-hugetlb]'
  --seconds N   how long; 180 where nothing is said
  --seed S      what the rounds follow from; a fresh one where nothing is said
  --round R     the same round again and again
  --quick       short rounds of little memory, as the test has them
  --no-swap     nothing is paged out, though the machine swaps
  --no-hugetlb  no huge pages, though the machine has some free";

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(5);

struct Arguments {
    seconds: u64,
    seed: u64,
    round: Option<u64>,
    extras: Extras,
}

impl Arguments {
    fn parse() -> Result<Self, String> {
        let mut parsed = Self { seconds: 180, seed: fresh_seed(), round: None, extras: Extras::found() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut number = || {
                let text = arguments.next().ok_or_else(|| format!("{argument} wants a number"))?;
                text.parse::<u64>().map_err(|error| format!("{argument} {text}: {error}"))
            };
            match argument.as_str() {
                "--seconds" => parsed.seconds = number()?,
                "--seed" => parsed.seed = number()?,
                "--round" => parsed.round = Some(number()?),
                "--quick" => parsed.extras.is_quick = true,
                "--no-swap" => parsed.extras.pages_out = false,
                "--no-hugetlb" => parsed.extras.huge_pages = 0,
                other => return Err(format!("there is no {other}")),
            }
        }
        Ok(parsed)
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("stress: {error}\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let Arguments { seconds, seed, round, extras } = arguments;
    println!("stress: seed {seed}, {seconds} s, {extras:?}");
    match run(&arguments) {
        Ok(seen) => {
            println!("stress: no byte was wrong and nobody waited in vain: {}", text(seen));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            if round.is_none() {
                eprintln!("stress: the whole run: make stress STRESS_ARGS='--seed {seed}'");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<Seen, String> {
    let (start, mut told) = (Instant::now(), Instant::now());
    let mut seeds = Sequence::new(arguments.seed);
    let mut seen = Seen::default();
    while start.elapsed() < Duration::from_secs(arguments.seconds) {
        let seed = arguments.round.unwrap_or_else(|| seeds.next_u64());
        seen.add(stress::round(seed, arguments.extras)?);
        if told.elapsed() > PROGRESS {
            told = Instant::now();
            println!("stress: {:4} s: {}", start.elapsed().as_secs(), text(seen));
        }
    }
    Ok(seen)
}

fn text(seen: Seen) -> String {
    let Seen { rounds, faults, removed, write_protected, engines } = seen;
    format!(
        "{rounds} rounds, {engines} engines, {faults} faults, {removed} pages thrown away, \
         {write_protected} protected writes"
    )
}

fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |since| u64::try_from(since.as_millis()).unwrap_or(1))
}
