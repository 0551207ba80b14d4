//! Runs a command on a KVM host in software, by hand: `kvm-host [--kernel 6.1|6.12] [--cpus N] [--memory MIB]
//! [--timeout SECONDS] [--] COMMAND…`. The command sees this machine's files at their paths; what it writes is
//! forgotten. Exits with its status.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tests::lab::{Lab, LabCommand};

const USAGE: &str =
    "usage: kvm-host [--kernel 6.1|6.12] [--cpus N] [--memory MIB] [--timeout SECONDS] [--] COMMAND…";
const USAGE_STATUS: u8 = 2;

fn main() -> ExitCode {
    let Some((lab, command)) = parse(std::env::args_os().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(USAGE_STATUS);
    };
    match lab.run(&command, &mut io::stdout()) {
        Ok(exit) => {
            eprintln!("kvm-host: {} in {:.1} s", lab.describe(), exit.elapsed.as_secs_f32());
            ExitCode::from(u8::try_from(exit.status).unwrap_or(u8::MAX))
        }
        Err(error) => {
            eprintln!("kvm-host: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Option<(Lab, LabCommand)> {
    let mut arguments = arguments.peekable();
    let mut lab = Lab::default();
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
            _ => return None,
        };
    }
    Some((lab, LabCommand::new(arguments.next()?).args(arguments)))
}
