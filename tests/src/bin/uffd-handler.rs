//! A page-fault handler as they are written for Firecracker ([`tests::page_handler`]), as a process of its own.
//! What it did goes to standard error at its end.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use tests::page_handler::{self, Mode, Served};

const USAGE: &str = "usage: uffd-handler SOCKET MEMORY_FILE [MODE]
  MODE  good (default), wrong, flood, never-accept, die-after=PAGES, unregister-after=PAGES";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (socket, memory, mode) = match &arguments[..] {
        [socket, memory] => (socket, memory, Ok(Mode::Good)),
        [socket, memory, mode] => (socket, memory, mode.parse()),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let mode = match mode {
        Ok(mode) => mode,
        Err(error) => {
            eprintln!("uffd-handler: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(socket, memory, mode) {
        Ok(Served { pages, zeros, removals }) => {
            eprintln!("uffd-handler: {pages} pages, {zeros} zero pages, {removals} removals");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("uffd-handler: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(socket: &str, memory: &str, mode: Mode) -> io::Result<Served> {
    let memory = File::open(memory)?;
    // Whoever sees the socket is to be able to connect: between being bound and being listened at it refuses.
    let aside = format!("{socket}.aside");
    let listener = UnixListener::bind(&aside)?;
    fs::rename(&aside, socket)?;
    page_handler::serve(&listener, &memory, mode)
}
