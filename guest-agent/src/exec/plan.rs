//! What a start frame asks for, checked, and made ready for a child that may no longer allocate.

use super::users::{self, User, UserError};
use pinfold_domain::{Cause, Reason};
use pinfold_proto::convert::file::check_path;
use pinfold_proto::convert::process::{check_command, check_user};
use pinfold_proto::guest::v1::{ExecStart, TerminalSize};
use pinfold_proto::limits;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::Path;
use std::time::Duration;

/// The sandbox's environment and the call's, each of which may take 256 variables and 32 KiB.
const VARIABLES: usize = 2 * pinfold_domain::spec::limits::ENVIRONMENT_VARIABLES;
const ENVIRONMENT_BYTES: usize = 2 * pinfold_domain::spec::limits::ENVIRONMENT_BYTES;
/// Directories of PATH in which a program is looked for.
const PATH_DIRECTORIES: usize = 128;
/// Longest name of a program that is looked up (NAME_MAX).
const PROGRAM_BYTES: usize = 255;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub struct Plan {
    /// the first word of the command, for messages
    pub program: String,
    /// paths to try in turn
    pub candidates: Vec<CString>,
    pub arguments: Vec<CString>,
    /// `NAME=value`
    pub environment: Vec<CString>,
    pub user: User,
    pub directory: CString,
    /// the caller named no directory: where the home does not exist, `/` will do
    pub directory_is_default: bool,
    pub terminal: Option<TerminalSize>,
    pub time_limit: Option<Duration>,
}

impl Plan {
    /// Checks `start`. `root` is the guest's root directory; reading its users blocks. `trace_parent` is the call's
    /// `traceparent`, which the process gets as TRACEPARENT unless its environment has one.
    pub fn check(start: ExecStart, root: &Path, trace_parent: Option<&str>) -> Result<Self, Cause> {
        check_command(&start.command)?;
        check_user(&start.user)?;
        check_environment(&start.environment.iter().collect())?;
        if !start.working_directory.is_empty() {
            check_path("working_directory", &start.working_directory)?;
        }
        start.terminal.as_ref().map(check_size).transpose()?;
        if start.timeout_ms == Some(0) {
            return Err(invalid("timeout_ms is 0; leave it out for no limit"));
        }
        let user = users::find(root, &start.user).map_err(|error| match &error {
            UserError::Unknown { .. } => invalid(error.to_string()),
            UserError::Read { source, .. } => invalid(format!("{error}: {source}")),
        })?;
        let mut environment: BTreeMap<_, _> = start.environment.into_iter().collect();
        add_defaults(&mut environment, &user, start.terminal.is_some(), trace_parent);
        let directory_is_default = start.working_directory.is_empty();
        let directory = if directory_is_default { user.home.clone() } else { start.working_directory };
        let path = environment.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        Ok(Self {
            candidates: candidates(&start.command[0], path)?,
            program: start.command[0].clone(),
            arguments: strings("command", start.command)?,
            environment: strings(
                "environment",
                environment.iter().map(|(name, value)| format!("{name}={value}")),
            )?,
            user,
            directory: string("working_directory", directory)?,
            directory_is_default,
            terminal: start.terminal,
            time_limit: start.timeout_ms.map(Duration::from_millis),
        })
    }
}

/// 1 to 65,535 rows and columns.
pub fn check_size(size: &TerminalSize) -> Result<(), Cause> {
    for (field, value) in [("terminal.rows", size.rows), ("terminal.columns", size.columns)] {
        if !(1..=limits::TERMINAL_CELLS).contains(&value) {
            return Err(invalid(format!("{field} is {value}, outside 1 to {}", limits::TERMINAL_CELLS)));
        }
    }
    Ok(())
}

pub fn invalid(message: impl Into<String>) -> Cause {
    Cause::new(Reason::InvalidArgument, message)
}

fn check_environment(environment: &BTreeMap<&String, &String>) -> Result<(), Cause> {
    if environment.len() > VARIABLES {
        return Err(invalid(format!(
            "environment has {} variables, the limit is {VARIABLES}",
            environment.len()
        )));
    }
    let bytes: usize = environment.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > ENVIRONMENT_BYTES {
        return Err(invalid(format!("environment takes {bytes} bytes, the limit is {ENVIRONMENT_BYTES}")));
    }
    for (name, value) in environment {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            let name: String = name.chars().take(80).collect();
            return Err(invalid(format!(
                "environment {name:?}: a name is not empty, and has no `=`; nothing has a NUL"
            )));
        }
    }
    Ok(())
}

fn add_defaults(
    environment: &mut BTreeMap<String, String>,
    user: &User,
    on_terminal: bool,
    trace_parent: Option<&str>,
) {
    let mut default = |name: &str, value: &str| {
        environment.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    };
    default("PATH", DEFAULT_PATH);
    default("HOME", &user.home);
    default("USER", &user.name);
    default("LOGNAME", &user.name);
    default("SHELL", &user.shell);
    default("LANG", "C.UTF-8");
    if on_terminal {
        default("TERM", "xterm-256color");
    }
    if let Some(trace_parent) = trace_parent {
        default("TRACEPARENT", trace_parent);
    }
}

/// As execvp(3) looks: a name with a slash is a path; any other is looked for in each directory of `path`, of which an
/// empty one is the working directory. The child tries them with the user's rights.
fn candidates(program: &str, path: &str) -> Result<Vec<CString>, Cause> {
    if program.contains('/') {
        return strings("command", [program.to_owned()]);
    }
    if program.len() > PROGRAM_BYTES {
        return Ok(Vec::new());
    }
    let directories = path.split(':').take(PATH_DIRECTORIES);
    let named = directories.map(|directory| match directory {
        "" => program.to_owned(),
        _ => format!("{}/{program}", directory.trim_end_matches('/')),
    });
    strings("PATH", named)
}

fn strings(field: &str, words: impl IntoIterator<Item = String>) -> Result<Vec<CString>, Cause> {
    words.into_iter().map(|word| string(field, word)).collect()
}

fn string(field: &str, word: String) -> Result<CString, Cause> {
    CString::new(word).map_err(|_| invalid(format!("{field} holds a NUL byte")))
}

#[cfg(test)]
mod tests;
