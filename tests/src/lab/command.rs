//! What is run in the lab, as the shell script that the lab's init is handed.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::LAB_VARIABLE;

/// A program, its arguments, its environment and its working folder: by default, this process's.
#[derive(Clone, Debug)]
pub struct LabCommand {
    words: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    folder: PathBuf,
}

impl LabCommand {
    /// Runs `program`, which is found at the same path in the lab as here.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            words: vec![program.into()],
            environment: std::env::vars_os().collect(),
            folder: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
        }
    }

    /// Appends arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.words.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets its working folder.
    pub fn current_dir(mut self, folder: &Path) -> Self {
        folder.clone_into(&mut self.folder);
        self
    }

    /// The script, which becomes the program; `lab` says to it where it is.
    pub(super) fn script(&self, lab: &str) -> Vec<u8> {
        let mut script = Vec::new();
        let mut line = |parts: &[&[u8]]| {
            parts.iter().for_each(|part| script.extend_from_slice(part));
            script.push(b'\n');
        };
        for (name, value) in self.environment.iter().filter(|(name, _)| is_shell_name(name)) {
            line(&[b"export ", name.as_bytes(), b"=", &quoted(value)]);
        }
        line(&[b"export ", LAB_VARIABLE.as_bytes(), b"=", &quoted(OsStr::new(lab))]);
        line(&[b"cd ", &quoted(self.folder.as_os_str()), b" || exit"]);
        let words: Vec<_> = self.words.iter().map(|word| quoted(word)).collect();
        line(&[b"exec ", &words.join(&b' ')]);
        script
    }
}

/// Whether a shell can have a variable of this name; a process's environment can hold others.
fn is_shell_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.first().is_some_and(|first| !first.is_ascii_digit())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

/// `word` as the shell reads it back unchanged.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut text = word.to_owned().into_vec();
    text = text.split(|byte| *byte == b'\'').collect::<Vec<_>>().join(&br"'\''"[..]);
    text.insert(0, b'\'');
    text.push(b'\'');
    text
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_said() {
        let folder = tempfile::tempdir().unwrap();
        let words = ["it's", "two words", "$HOME `id`", "", "a\nb"];
        let script = LabCommand::new("printf")
            .args(["%s|%s|%s|%s|%s|"])
            .args(words)
            .current_dir(folder.path())
            .script("the lab's name");
        let path = folder.path().join("script");
        std::fs::write(&path, script).unwrap();
        let output = Command::new("sh").arg(&path).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), words.map(|word| format!("{word}|")).concat());
    }
}
