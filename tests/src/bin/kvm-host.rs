//! Runs a command on a KVM host in software, by hand: `kvm-host [--kernel 6.1|6.12] [--cpus N] [--memory MIB]
//! [--timeout SECONDS] [--get NAME=PATH]… [--] COMMAND…`. The command sees this machine's files at their paths; what it
//! writes is forgotten, but for what it leaves as `/run/lab/NAME`, which `--get` copies to PATH. Exits with its status.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tests::lab::{Lab, LabCommand, LabExit};

const USAGE: &str = "usage: kvm-host [--kernel 6.1|6.12] [--cpus N] [--memory MIB] [--timeout SECONDS] [--get NAME=PATH]… \
                     [--] COMMAND…";
const USAGE_STATUS: u8 = 2;

/// What is asked for.
struct Arguments {
    lab: Lab,
    /// Names in the exchange folder, and where they are copied to.
    wanted: Vec<(String, PathBuf)>,
    command: LabCommand,
}

fn main() -> ExitCode {
    let Some(Arguments { lab, wanted, command }) = parse(std::env::args_os().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(USAGE_STATUS);
    };
    match lab.run(&command, &mut io::stdout()) {
        Ok(exit) => {
            eprintln!("kvm-host: {} in {:.1} s", lab.describe(), exit.elapsed.as_secs_f32());
            if exit.status == 0 && !get(&exit, &wanted) {
                return ExitCode::FAILURE;
            }
            ExitCode::from(u8::try_from(exit.status).unwrap_or(u8::MAX))
        }
        Err(error) => {
            eprintln!("kvm-host: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Copies what the command left, and says whether all of it was there.
fn get(exit: &LabExit, wanted: &[(String, PathBuf)]) -> bool {
    wanted.iter().all(|(name, path)| match fs::copy(exit.exchange.path().join(name), path) {
        Ok(bytes) => {
            eprintln!("kvm-host: {} has {bytes} bytes", path.display());
            true
        }
        Err(error) => {
            eprintln!("kvm-host: /run/lab/{name} cannot be copied to {}: {error}", path.display());
            false
        }
    })
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Option<Arguments> {
    let mut arguments = arguments.peekable();
    let (mut lab, mut wanted) = (Lab::default(), Vec::new());
    while let Some(option) = arguments.next_if(|word| word.to_string_lossy().starts_with("--")) {
        if option == "--" {
            break;
        }
        let value = arguments.next()?.into_string().ok()?;
        lab = match option.to_str()? {
            "--kernel" => lab.kernel_series(&value),
            "--cpus" => lab.cpus(value.parse().ok()?),
            "--memory" => lab.memory_mib(value.parse().ok()?),
            "--timeout" => lab.timeout(Duration::from_secs(value.parse().ok()?)),
            "--get" => {
                let (name, path) = value.split_once('=')?;
                wanted.push((name.to_owned(), PathBuf::from(path)));
                lab
            }
            _ => return None,
        };
    }
    let command = LabCommand::new(arguments.next()?).args(arguments);
    Some(Arguments { lab, wanted, command })
}
