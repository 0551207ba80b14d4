//! How the process is started: in a folder of its own, with which arguments, on what standard input and output.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use api::client::Client;
use rustix::pipe::fcntl_setpipe_size;
use tempfile::TempDir;

use super::console::Console;
use super::{Terminal, Vmm, binary};
use crate::child::{dies_with_parent, leads_terminal};

pub(super) const LOG_FILE: &str = "log";
pub(super) const STDERR_FILE: &str = "stderr";
/// The folder that the process runs in.
pub(super) const WORKING_FOLDER: &str = "working-folder";
/// The smallest pipe there is: one page.
const PIPE_BYTES_MIN: usize = 4096;

/// A VMM about to be started. Nothing here waits for its API.
pub struct Launch {
    folder: TempDir,
    socket: PathBuf,
    words: Vec<OsString>,
    arguments: Vec<OsString>,
}

impl Launch {
    /// With these arguments.
    pub fn new(arguments: &[&str]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("faultless-test-")
            .tempdir()
            .expect("the folder for temporary files can be written");
        Self {
            socket: folder.path().join("api.socket"),
            words: vec![binary().into()],
            arguments: arguments.iter().map(OsString::from).collect(),
            folder,
        }
    }

    /// As `program`, which is a VMM of its own kind, with these words before all flags.
    pub fn program(mut self, program: &Path, words: &[&str]) -> Self {
        self.words = vec![program.into()];
        self.words.extend(words.iter().map(OsString::from));
        self
    }

    /// With its API on a socket in its own folder.
    pub fn with_api(mut self) -> Self {
        self.words.extend(["--api-sock".as_ref(), self.socket.as_os_str()].map(OsStr::to_owned));
        self
    }

    /// With its API on `socket`.
    pub fn with_api_on(mut self, socket: &Path) -> Self {
        socket.clone_into(&mut self.socket);
        self.with_api()
    }

    /// With its log in a file, which [`Vmm::log`] gives.
    pub fn with_log(mut self) -> Self {
        let log = self.folder.path().join(LOG_FILE);
        self.words.extend(["--log-path".as_ref(), log.as_os_str()].map(OsStr::to_owned));
        self
    }

    /// By another program, whose last words are to be the VMM's: `prlimit --nofile=10`, for example.
    pub fn by(mut self, wrapper: &[&str]) -> Self {
        self.words.splice(0..0, wrapper.iter().map(OsString::from));
        self
    }

    /// Starts it on pipes, which are its console.
    pub fn start(self) -> Vmm {
        let mut child = self.spawn(&mut self.command(), Stdio::piped(), Stdio::piped());
        let output = child.stdout.take().expect("stdout was asked to be a pipe");
        self.vmm(child, output)
    }

    /// Starts it with a standard output that is full after 4 KiB, and that nobody reads.
    pub fn start_unread(self) -> Vmm {
        let mut child = self.spawn(&mut self.command(), Stdio::piped(), Stdio::piped());
        let output = child.stdout.take().expect("stdout was asked to be a pipe");
        fcntl_setpipe_size(&output, PIPE_BYTES_MIN).expect("a pipe with little in it can be made smaller");
        self.vmm(child, Unread { _pipe: output })
    }

    /// Starts it on a terminal, in the foreground.
    pub fn start_on_terminal(self) -> (Vmm, Terminal) {
        let terminal = Terminal::open();
        let mut command = self.command();
        leads_terminal(&mut command);
        let child = self.spawn(&mut command, terminal.stdio(), terminal.stdio());
        let console = Console::new(terminal.keyboard(), terminal.screen());
        (self.of(child, console), terminal)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).args(&self.arguments);
        command
    }

    fn spawn(&self, command: &mut Command, input: Stdio, output: Stdio) -> Child {
        let stderr = File::create(self.folder.path().join(STDERR_FILE)).expect("a new folder can be written");
        let working_folder = self.folder.path().join(WORKING_FOLDER);
        fs::create_dir(&working_folder).expect("a new folder can be written");
        command.current_dir(working_folder).stdin(input).stdout(output).stderr(stderr);
        dies_with_parent(command).spawn().expect("the program under test can be run")
    }

    fn vmm(self, mut child: Child, output: impl Read + Send + 'static) -> Vmm {
        let input = child.stdin.take().expect("stdin was asked to be a pipe");
        self.of(child, Console::new(input, output))
    }

    fn of(self, child: Child, console: Console) -> Vmm {
        let client = Client::new(self.socket);
        Vmm { child, client, console, folder: self.folder, api_ready_after: Duration::ZERO }
    }
}

/// The reading end of a pipe, in the hands of somebody who does not read.
struct Unread {
    _pipe: ChildStdout,
}

impl Read for Unread {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        loop {
            std::thread::park();
        }
    }
}
