//! Configuration: defaults, then a TOML file, then environment variables, then flags; the later one wins.
//!
//! Invariant: what [`load`] returns has been checked as a whole. A key that nobody reads is refused wherever it comes
//! from (the structs carry `#[serde(deny_unknown_fields)]`), because a misspelt limit must not become no limit.
//!
//! Environment: `PREFIX_KEY`, with `__` between the levels: `PINFOLD_SCHEDULER_LOG__FORMAT=json`.

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::path::{Path, PathBuf};

/// The configuration of one daemon.
pub trait Config: Default + Serialize + DeserializeOwned {
    /// Of its environment variables, with the last `_`.
    const ENV_PREFIX: &'static str;

    /// Checks what the types cannot: bounds, and values that depend on each other.
    fn check(&self) -> Result<(), BadValue>;
}

/// A value outside its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}: {limit}")]
pub struct BadValue {
    pub field: &'static str,
    pub value: String,
    /// what would be allowed
    pub limit: String,
}

impl BadValue {
    pub fn new(field: &'static str, value: impl fmt::Display, limit: impl Into<String>) -> Self {
        Self { field, value: value.to_string(), limit: limit.into() }
    }
}

/// Refuses `value` unless it is in `min..=max`.
pub fn in_range<T: PartialOrd + fmt::Display>(
    field: &'static str,
    value: T,
    min: T,
    max: T,
) -> Result<(), BadValue> {
    if value >= min && value <= max {
        Ok(())
    } else {
        Err(BadValue::new(field, value, format!("allowed is {min} to {max}")))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("there is no configuration file {}", path.display())]
    NoFile { path: PathBuf },
    #[error("the configuration cannot be used")]
    Unreadable(#[from] Box<figment::Error>),
    #[error("the configuration cannot be used")]
    Value(#[from] BadValue),
    #[error("the configuration cannot be written as TOML")]
    Unwritable(#[from] toml::ser::Error),
}

/// The flags that every daemon has; flatten it into the daemon's own.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ConfigArgs {
    /// Read the configuration from this TOML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration, print the result and end
    #[arg(long)]
    pub check_config: bool,
    /// Print the configuration as it would be used and end
    #[arg(long)]
    pub dump_config: bool,
}

/// What a daemon does after its configuration was read.
#[derive(Debug)]
pub enum Decision<C> {
    Run(C),
    /// print this and end with success
    Print(String),
}

/// Loads, and answers `--check-config` and `--dump-config`.
pub fn resolve<C: Config>(args: &ConfigArgs, flags: &impl Serialize) -> Result<Decision<C>, ConfigError> {
    let config: C = load(args.config.as_deref(), flags)?;
    if args.dump_config {
        return Ok(Decision::Print(dump(&config)?));
    }
    if args.check_config {
        return Ok(Decision::Print("the configuration is good\n".to_owned()));
    }
    Ok(Decision::Run(config))
}

/// Merges the four sources and checks the result. In `flags`, fields that are `None` leave the value alone.
pub fn load<C: Config>(file: Option<&Path>, flags: &impl Serialize) -> Result<C, ConfigError> {
    let mut figment = Figment::from(Serialized::defaults(C::default()));
    if let Some(path) = file {
        if !path.is_file() {
            return Err(ConfigError::NoFile { path: path.to_owned() });
        }
        figment = figment.merge(Toml::file_exact(path));
    }
    let given = given(Value::serialize(flags).map_err(Box::new)?);
    figment = figment.merge(Env::prefixed(C::ENV_PREFIX).split("__")).merge(Serialized::defaults(given));
    let config: C = figment.extract().map_err(Box::new)?;
    config.check()?;
    Ok(config)
}

/// The configuration as TOML, every key written out.
pub fn dump<C: Serialize>(config: &C) -> Result<String, ConfigError> {
    Ok(toml::to_string_pretty(config)?)
}

/// Only what was given: empty values are taken out, at every level.
fn given(value: Value) -> Dict {
    let Value::Dict(_, dict) = value else { return Dict::new() };
    let keep = |(key, value): (String, Value)| match value {
        Value::Empty(..) => None,
        Value::Dict(tag, _) => {
            let inner = given(value);
            (!inner.is_empty()).then_some((key, Value::Dict(tag, inner)))
        }
        other => Some((key, other)),
    };
    dict.into_iter().filter_map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        queue: u32,
    }

    impl Default for Inner {
        fn default() -> Self {
            Self { queue: 8 }
        }
    }

    #[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        listen: String,
        relay: Inner,
    }

    impl Config for Sample {
        const ENV_PREFIX: &'static str = "PINFOLD_CONFIG_UNIT_TEST_";
        fn check(&self) -> Result<(), BadValue> {
            in_range("relay.queue", self.relay.queue, 1, 100)
        }
    }

    #[derive(Serialize, Default)]
    struct Flags {
        listen: Option<String>,
        relay: InnerFlags,
    }

    #[derive(Serialize, Default)]
    struct InnerFlags {
        queue: Option<u32>,
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    /// As `main` prints it: with its cause, which is said once.
    fn message(outcome: Result<Sample, ConfigError>) -> String {
        format!("{:#}", anyhow::Error::from(outcome.unwrap_err()))
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file = file("listen = \"file\"\n[relay]\nqueue = 9\n");
        let none = load::<Sample>(Some(file.path()), &Flags::default()).unwrap();
        assert_eq!(none, Sample { listen: "file".into(), relay: Inner { queue: 9 } });
        let flags = Flags { listen: Some("flag".into()), ..Flags::default() };
        let some = load::<Sample>(Some(file.path()), &flags).unwrap();
        assert_eq!(some, Sample { listen: "flag".into(), relay: Inner { queue: 9 } });
        let flags = Flags { relay: InnerFlags { queue: Some(10) }, ..Flags::default() };
        assert_eq!(load::<Sample>(None, &flags).unwrap().relay.queue, 10);
        assert_eq!(load::<Sample>(None, &Flags::default()).unwrap().relay.queue, 8);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        for text in ["lisen = \"x\"\n", "[relay]\nqeue = 3\n"] {
            let file = file(text);
            let error = message(load::<Sample>(Some(file.path()), &Flags::default()));
            assert!(error.contains("unknown field"), "{error}");
            assert!(error.contains("lisen") || error.contains("qeue"), "{error}");
        }
    }

    #[test]
    fn a_value_out_of_bounds_is_refused_with_its_bounds() {
        let file = file("[relay]\nqueue = 101\n");
        let error = message(load::<Sample>(Some(file.path()), &Flags::default()));
        assert_eq!(error, "the configuration cannot be used: relay.queue is 101: allowed is 1 to 100");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Sample>(Some(Path::new("/no/such.toml")), &Flags::default()).unwrap_err();
        assert_eq!(error.to_string(), "there is no configuration file /no/such.toml");
    }

    #[test]
    fn a_dump_can_be_loaded_again() {
        let config = Sample { listen: "x".into(), relay: Inner { queue: 3 } };
        let file = file(&dump(&config).unwrap());
        assert_eq!(load::<Sample>(Some(file.path()), &Flags::default()).unwrap(), config);
    }

    #[test]
    fn check_and_dump_do_not_run() {
        let args = ConfigArgs { check_config: true, ..ConfigArgs::default() };
        let decision = resolve::<Sample>(&args, &Flags::default()).unwrap();
        assert!(matches!(decision, Decision::Print(text) if text.contains("good")));
        let args = ConfigArgs { dump_config: true, ..ConfigArgs::default() };
        let decision = resolve::<Sample>(&args, &Flags::default()).unwrap();
        assert!(matches!(decision, Decision::Print(text) if text.contains("queue = 8")));
    }
}
