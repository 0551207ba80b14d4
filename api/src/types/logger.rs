//! `PUT /logger`: where the log goes and what it holds.

use serde::{Deserialize, Serialize};
use std::str::FromStr;
use utoipa::ToSchema;

/// How much is logged. Read without regard to case; written as spelled here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What is likely a mistake. `Warn` is read too.
    Warning,
    /// What was done.
    #[default]
    Info,
    /// How it was done.
    Debug,
    /// Each step.
    Trace,
}

/// A word that names no log level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown log level {0:?}: use Off, Error, Warning, Info, Debug or Trace")]
pub struct UnknownLogLevel(String);

impl FromStr for LogLevel {
    type Err = UnknownLogLevel;

    fn from_str(word: &str) -> Result<Self, UnknownLogLevel> {
        match word.to_ascii_lowercase().as_str() {
            "off" => Ok(Self::Off),
            "error" => Ok(Self::Error),
            "warning" | "warn" => Ok(Self::Warning),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            _ => Err(UnknownLogLevel(word.to_owned())),
        }
    }
}

impl TryFrom<String> for LogLevel {
    type Error = UnknownLogLevel;

    fn try_from(word: String) -> Result<Self, UnknownLogLevel> {
        word.parse()
    }
}

/// The log, as it is set up before boot; absent fields stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// File or named pipe that gets the log; stdout when never set.
    pub log_path: Option<String>,
    /// How much is logged; `Info` when never set.
    pub level: Option<LogLevel>,
    /// Whether each line says its level.
    pub show_level: Option<bool>,
    /// Whether each line says which file and line it comes from.
    pub show_log_origin: Option<bool>,
    /// Only what this module (and those within it) logs.
    pub module: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_in_any_case_and_written_in_one() {
        for word in ["warning", "WARN", "Warning"] {
            assert_eq!(word.parse(), Ok(LogLevel::Warning));
        }
        assert_eq!(serde_json::to_string(&LogLevel::Warning).unwrap(), "\"Warning\"");
        assert!(
            serde_json::from_str::<LogLevel>("\"loud\"").unwrap_err().to_string().contains("use Off, Error")
        );
    }
}
