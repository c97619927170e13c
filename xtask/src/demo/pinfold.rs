//! Running the `pinfold` command and showing what was run.

use crate::workspace::Workspace;
use anyhow::{Context, Result, bail, ensure};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Every process of a fleet has it in its environment.
pub const STATE_VARIABLE: &str = "PINFOLD_STATE_DIR";

/// The binary of this checkout, with this checkout's artifacts.
pub struct Pinfold {
    binary: PathBuf,
    node_files: PathBuf,
    build: PathBuf,
    binaries: PathBuf,
    /// the demo's fleet is not the one that its user may have running
    state: PathBuf,
}

/// A command that runs beside others, its standard output dropped, its errors shown.
pub struct Started {
    child: Child,
    shown: String,
}

impl Pinfold {
    pub fn new(workspace: &Workspace) -> Self {
        Self {
            binary: workspace.binaries().join("pinfold"),
            node_files: workspace.build.join("node"),
            build: workspace.build.clone(),
            binaries: workspace.binaries(),
            state: workspace.build.join("demo"),
        }
    }

    /// Prints the command, shows its output as it comes, returns its exit code.
    pub fn show(&self, words: &[&str], stdin: Option<&str>) -> Result<i32> {
        announce(words, stdin);
        let mut command = self.command(words);
        command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn().with_context(|| format!("starting {}", self.binary.display()))?;
        if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
            // a command that ends without reading all of it is judged by its exit code
            let _unread = pipe.write_all(text.as_bytes());
        }
        exit_code(&mut child, words)
    }

    /// As [`Pinfold::show`]; another exit code than `expected` is an error.
    pub fn expect(&self, expected: i32, words: &[&str], stdin: Option<&str>) -> Result<()> {
        let code = self.show(words, stdin)?;
        ensure!(
            code == expected,
            "`pinfold {}` ended with exit code {code}, expected {expected}",
            quoted(words)
        );
        if expected != 0 {
            println!("  (exit code {code}, as it should be)");
        }
        Ok(())
    }

    /// Starts a command and goes on.
    pub fn start(&self, words: &[&str]) -> Result<Started> {
        announce(words, None);
        let mut command = self.command(words);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().with_context(|| format!("starting {}", self.binary.display()))?;
        Ok(Started { child, shown: quoted(words) })
    }

    /// What the command prints with `-o json`.
    pub fn json(&self, words: &[&str]) -> Result<serde_json::Value> {
        let mut command = self.command(words);
        let output = command.args(["-o", "json"]).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "`pinfold {} -o json` ended with {}", quoted(words), output.status);
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("reading `pinfold {} -o json`", quoted(words)))
    }

    /// Runs a command that may fail and whose output nobody needs.
    pub fn quietly(&self, words: &[&str]) -> Result<()> {
        self.command(words).stdin(Stdio::null()).output()?;
        Ok(())
    }

    pub fn state_directory(&self) -> &Path {
        &self.state
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(words);
        if words.starts_with(&["dev", "up"]) {
            command.arg("--node-files").arg(&self.node_files);
        }
        command.env("PINFOLD_BUILD_DIR", &self.build).env("PINFOLD_BIN_DIR", &self.binaries);
        command.env(STATE_VARIABLE, &self.state).env_remove("PINFOLD_SCHEDULER");
        command
    }
}

impl Started {
    /// Ends it at once: for Pinfold, a client that goes away.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("ending `pinfold {}`", self.shown))?;
        self.child.wait()?;
        Ok(())
    }

    /// Its exit code.
    pub fn wait(mut self) -> Result<i32> {
        let status = self.child.wait()?;
        status.code().with_context(|| format!("`pinfold {}` was ended by a signal", self.shown))
    }
}

impl Drop for Started {
    /// An early return of the demo leaves no child behind. After [`Started::wait`] this does nothing.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _gone = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

fn exit_code(child: &mut Child, words: &[&str]) -> Result<i32> {
    let status = child.wait()?;
    match status.code() {
        Some(code) => Ok(code),
        None => bail!("`pinfold {}` ended with {status}", quoted(words)),
    }
}

fn announce(words: &[&str], stdin: Option<&str>) {
    println!("\n$ pinfold {}{}", quoted(words), stdin.map(here_document).unwrap_or_default());
}

fn here_document(text: &str) -> String {
    format!(" <<'END'\n{}\nEND\n", text.trim_end())
}

/// The words as one would type them in a shell.
fn quoted(words: &[&str]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@%+,".contains(c);
    let quote = |word: &&str| {
        if !word.is_empty() && word.chars().all(plain) {
            (*word).to_owned()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted_into_a_shell() {
        assert_eq!(quoted(&["exec", "a", "--", "sh", "-c", "exit 7"]), "exec a -- sh -c 'exit 7'");
        assert_eq!(quoted(&["it's", ""]), r"'it'\''s' ''");
    }
}
