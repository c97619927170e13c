//! Logs go to standard error, one event a line, as text for people or JSON for machines.

use serde::{Deserialize, Serialize};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    pub format: LogFormat,
    /// directives of `tracing_subscriber::EnvFilter`: `info`, `info,pinfold_scheduler::nodes=debug`
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log.filter {filter:?} cannot be used: {source}")]
    Filter { filter: String, source: tracing_subscriber::filter::ParseError },
    #[error("the log is open already")]
    AlreadyOpen,
}

/// Opens the log of this process. Once.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|source| LogError::Filter { filter: config.filter.clone(), source })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let opened = match config.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    opened.map_err(|_| LogError::AlreadyOpen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_named() {
        let config = LogConfig { filter: "info,=,".to_owned(), ..LogConfig::default() };
        let error = init(&config).unwrap_err().to_string();
        assert!(error.contains("info,=,"), "{error}");
    }

    #[test]
    fn the_log_opens_once() {
        init(&LogConfig::default()).unwrap();
        assert!(matches!(init(&LogConfig::default()), Err(LogError::AlreadyOpen)));
    }
}
