//! What belongs to sandboxes on this machine, found in kernel state and the file system rather than in the agent's own
//! lists, so that it also shows what the agent has lost sight of.

use pinfold_domain::SandboxId;
use serde::Serialize;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Each entry is a line for a person.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Leftovers {
    pub processes: Vec<String>,
    pub cgroups: Vec<String>,
    pub mounts: Vec<String>,
    pub taps: Vec<String>,
    pub sockets: Vec<String>,
    pub directories: Vec<String>,
}

impl Leftovers {
    fn kinds(&self) -> [(&'static str, &[String]); 6] {
        [
            ("process", &self.processes),
            ("cgroup", &self.cgroups),
            ("mount", &self.mounts),
            ("tap", &self.taps),
            ("socket", &self.sockets),
            ("directory", &self.directories),
        ]
    }

    pub fn is_empty(&self) -> bool {
        self.kinds().iter().all(|(_, found)| found.is_empty())
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for (kind, found) in self.kinds() {
            for entry in found {
                text.push_str(&format!("{kind}: {entry}\n"));
            }
        }
        if text.is_empty() {
            text.push_str(
                "nothing is left: no process, cgroup, mount, tap, socket or directory of a sandbox\n",
            );
        }
        text
    }
}

/// Looks everywhere. A directory that does not exist holds nothing.
pub fn find(state_dir: &Path, cgroup_root: &Path) -> io::Result<Leftovers> {
    let state_dir = fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    let sandboxes = state_dir.join("sandboxes");
    let mut found =
        Leftovers { processes: processes(&sandboxes)?, mounts: mounts(&sandboxes)?, ..Default::default() };
    found.cgroups = cgroups(cgroup_root)?;
    found.taps = taps()?;
    for entry in entries(&sandboxes)? {
        found.directories.push(entry.path().display().to_string());
        sockets(&entry.path(), &mut found.sockets)?;
    }
    Ok(found)
}

/// Processes that are a VMM or a jailer by their executable or name, or whose root is a jail.
fn processes(sandboxes: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in entries(Path::new("/proc"))? {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Any of these may vanish while it is looked at: then it is no leftover.
        let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let executable = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let root = fs::read_link(entry.path().join("root")).unwrap_or_default();
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let first_word = String::from_utf8_lossy(words.split(|byte| *byte == 0).next().unwrap_or_default());
        // the name of a process is cut at 15 bytes, which these are not
        let ours = |name: &str| matches!(name, "pinfold-vmm" | "pinfold-jailer");
        let file_name = executable.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if ours(command.trim())
            || ours(first_word.rsplit('/').next().unwrap_or_default())
            || ours(file_name.trim_end_matches(" (deleted)"))
            || root.starts_with(sandboxes)
        {
            found.push(format!("{pid} {}", command.trim()));
        }
    }
    Ok(found)
}

/// Groups of sandboxes; the root itself belongs to the agent.
fn cgroups(root: &Path) -> io::Result<Vec<String>> {
    let groups = entries(root)?.into_iter().filter(|entry| entry.path().is_dir());
    let named = groups
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<SandboxId>().is_ok()));
    Ok(named.map(|entry| entry.path().display().to_string()).collect())
}

fn mounts(sandboxes: &Path) -> io::Result<Vec<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    // field 5 is the mount point (proc(5))
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.filter(|point| Path::new(point).starts_with(sandboxes)).map(str::to_owned).collect())
}

/// Network devices whose name begins as those of sandboxes do.
fn taps() -> io::Result<Vec<String>> {
    let names = entries(Path::new("/sys/class/net"))?
        .into_iter()
        .filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with("pinfold")).collect())
}

fn sockets(directory: &Path, found: &mut Vec<String>) -> io::Result<()> {
    for entry in entries(directory)? {
        match entry.file_type() {
            Ok(kind) if kind.is_socket() => found.push(entry.path().display().to_string()),
            // one level: the jail
            Ok(kind) if kind.is_dir() => sockets(&entry.path(), found)?,
            _ => {}
        }
    }
    Ok(())
}

fn entries(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.flatten().collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const ID: &str = "0190b3f0-5a00-7000-8000-000000000001";

    #[test]
    fn what_is_left_is_found_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let cgroups = directory.path().join("cgroup");
        let empty = find(&state, &cgroups).unwrap();
        assert!(empty.directories.is_empty() && empty.sockets.is_empty() && empty.cgroups.is_empty());

        let sandbox = state.join("sandboxes").join(ID);
        fs::create_dir_all(sandbox.join("jail")).unwrap();
        fs::create_dir_all(cgroups.join(ID)).unwrap();
        fs::create_dir_all(cgroups.join("other")).unwrap();
        let _control = UnixListener::bind(sandbox.join("control.sock")).unwrap();
        let _hello = UnixListener::bind(sandbox.join("jail/v.sock_1025")).unwrap();
        let found = find(&state, &cgroups).unwrap();
        assert_eq!(
            (found.directories.len(), found.sockets.len(), found.cgroups.len()),
            (1, 2, 1),
            "{found:?}"
        );
        assert!(!found.is_empty() && found.text().contains("socket: "));
    }

    #[test]
    fn a_process_is_found_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("pinfold-vmm");
        fs::copy("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(&program).arg("100").spawn().unwrap();
        let found = processes(Path::new("/no/such/directory")).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // by its number: the kernel changes the name a moment after the parent goes on
        let start = format!("{} ", child.id());
        assert!(found.iter().any(|line| line.starts_with(&start)), "{found:?}");
    }
}
