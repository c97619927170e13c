//! Debian and Ubuntu packages: what is installed, installing, fetching without installing.

use crate::command;
use crate::progress::Step;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The running distribution, from os-release(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// `debian` or `ubuntu`
    pub id: String,
    /// such as `bookworm`
    pub codename: String,
}

impl Distribution {
    pub fn of_this_machine() -> Result<Self> {
        let text = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
        Self::parse(&text)
    }

    fn parse(os_release: &str) -> Result<Self> {
        let value = |name: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.map(|value| value.trim_matches('"').to_owned())
        };
        let (Some(id), Some(codename)) = (value("ID"), value("VERSION_CODENAME")) else {
            bail!("os-release names no ID or no VERSION_CODENAME; Debian and Ubuntu do");
        };
        if id != "debian" && id != "ubuntu" {
            bail!("this is {id}; the set-up knows the packages of Debian and Ubuntu only");
        }
        Ok(Self { id, codename })
    }

    /// The keyring that the distribution signs its archive with.
    fn keyring(&self) -> Option<PathBuf> {
        let path = PathBuf::from(format!("/usr/share/keyrings/{}-archive-keyring.gpg", self.id));
        path.is_file().then_some(path)
    }
}

/// Those of `packages` that are not installed, in the order given.
pub fn missing(packages: &[&str]) -> Result<Vec<String>> {
    // dpkg-query fails as soon as one name is unknown to it, and still lists the others
    let output = Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status} ${Package}\n"])
        .args(packages)
        .output()
        .context("starting dpkg-query")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let installed: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    Ok(packages.iter().filter(|name| !installed.contains(*name)).map(|name| (*name).to_owned()).collect())
}

/// Fetches the package lists when there are none yet (a fresh container).
pub fn ensure_lists(workspace: &Workspace, step: &Step) -> Result<()> {
    if !command::output(Command::new("apt-cache").args(["search", "--names-only", "^busybox-static$"]))?
        .is_empty()
    {
        return Ok(());
    }
    update(workspace, step)
}

fn update(workspace: &Workspace, step: &Step) -> Result<()> {
    command::run(step, &workspace.log("apt-update"), command::privileged("apt-get")?.arg("update"))
}

/// Installs `packages`.
///
/// Where the plain way is refused, because the machine holds newer parts from the distribution's backports, a second try
/// takes the backports too. Their lists live in a temporary directory, so the machine's own sources stay as they are.
pub fn install(workspace: &Workspace, step: &Step, packages: &[String]) -> Result<()> {
    ensure_lists(workspace, step)?;
    let log = workspace.log("apt-install");
    let Err(first) = command::run(step, &log, &mut install_command(packages, &[])?) else { return Ok(()) };
    // lists may be older than what the mirror still has
    update(workspace, step)?;
    if command::run(step, &log, &mut install_command(packages, &[])?).is_ok() {
        return Ok(());
    }
    let distribution = Distribution::of_this_machine()?;
    if distribution.id != "debian" {
        return Err(first);
    }
    println!(
        "    the plain install was refused, which a newer package from backports on this machine does: trying with backports"
    );
    let options = backports(workspace, &distribution)?;
    let mut update = command::privileged("apt-get")?;
    command::run(step, &workspace.log("apt-update"), update.args(&options).arg("update"))?;
    let target = ["-t".to_owned(), format!("{}-backports", distribution.codename)];
    let options = [options, target.to_vec()].concat();
    command::run(step, &log, &mut install_command(packages, &options)?)
}

/// Nothing of the machine is removed for our sake: apt fails instead.
fn install_command(packages: &[String], options: &[String]) -> Result<Command> {
    let mut apt = command::privileged("env")?;
    apt.args([
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "-y",
        "--no-install-recommends",
        "--no-remove",
    ]);
    apt.args(options).args(packages);
    Ok(apt)
}

/// apt options that add the backports of the machine's own mirror for one call.
fn backports(workspace: &Workspace, distribution: &Distribution) -> Result<Vec<String>> {
    let codename = &distribution.codename;
    let mirror = repositories(distribution)?
        .into_iter()
        .find(|repository| repository.suite == *codename)
        .with_context(|| format!("no apt source of this machine offers {codename}"))?;
    let directory = workspace.cache().join("apt-backports");
    let (parts, lists) = (directory.join("sources.list.d"), directory.join("lists"));
    fs::create_dir_all(&parts)?;
    fs::create_dir_all(lists.join("partial"))?;
    let mut sources = source_lines(distribution)?;
    sources.push(mirror.line(distribution, &format!("{codename}-backports")));
    fs::write(parts.join("all.list"), sources.join("\n") + "\n")?;
    let option = |name: &str, value: &Path| ["-o".to_owned(), format!("{name}={}", value.display())];
    Ok([
        option("Dir::Etc::SourceList", Path::new("/dev/null")),
        option("Dir::Etc::SourceParts", &parts),
        option("Dir::State::Lists", &lists),
        option("Dir::Cache::pkgcache", Path::new("")),
        option("Dir::Cache::srcpkgcache", Path::new("")),
    ]
    .concat())
}

/// One component of an archive that the machine's own apt uses.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Repository {
    uri: String,
    suite: String,
    component: String,
}

impl Repository {
    fn line(&self, distribution: &Distribution, suite: &str) -> String {
        let signed = distribution.keyring().map(|path| format!("[signed-by={}] ", path.display()));
        format!("deb {}{} {suite} {}", signed.unwrap_or_default(), self.uri, self.component)
    }
}

/// The distribution's own archives among the machine's apt sources, backports and third parties left out.
fn repositories(distribution: &Distribution) -> Result<Vec<Repository>> {
    let format = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)";
    let mut apt = Command::new("apt-get");
    let text = command::output(apt.args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let found = parse_repositories(&text, distribution);
    if found.is_empty() {
        bail!(
            "apt has no source of {} {}: run `apt-get update` and look at its errors",
            distribution.id,
            distribution.codename
        );
    }
    Ok(found)
}

fn parse_repositories(text: &str, distribution: &Distribution) -> Vec<Repository> {
    let mut found = Vec::new();
    for line in text.lines() {
        let [origin, uri, suite, component] = line.split('|').collect::<Vec<_>>()[..] else { continue };
        let own_suite = suite == distribution.codename
            || suite
                .strip_prefix(&distribution.codename)
                .is_some_and(|rest| ["-updates", "-security"].contains(&rest));
        if !origin.eq_ignore_ascii_case(&distribution.id) || !own_suite {
            continue;
        }
        let repository =
            Repository { uri: uri.to_owned(), suite: suite.to_owned(), component: component.to_owned() };
        if !found.contains(&repository) {
            found.push(repository);
        }
    }
    found
}

/// `deb ...` lines of the machine's own distribution, for building a root file system of the same release.
pub fn source_lines(distribution: &Distribution) -> Result<Vec<String>> {
    let repositories = repositories(distribution)?;
    Ok(repositories.iter().map(|repository| repository.line(distribution, &repository.suite)).collect())
}

/// A package file with its version.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub package: String,
    pub version: String,
    pub file: PathBuf,
}

/// The version that apt would install, or `None` for a package it does not know.
pub fn candidate(package: &str) -> Result<Option<String>> {
    let text = command::output(Command::new("apt-cache").args(["policy", package]))?;
    let version = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(version.filter(|version| *version != "(none)").map(str::to_owned))
}

/// Packages that `package` depends on, from apt's lists.
pub fn dependencies(package: &str) -> Result<Vec<String>> {
    let text = command::output(Command::new("apt-cache").args(["depends", "--important", package]))?;
    Ok(text.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned).collect())
}

/// Fetches the candidate of `package` into the cache without installing it.
pub fn fetch(workspace: &Workspace, step: &Step, package: &str) -> Result<Fetched> {
    let version = candidate(package)?.with_context(|| format!("apt knows no package {package}"))?;
    let directory = workspace.cache().join("packages").join(package).join(version.replace(':', "_"));
    fs::create_dir_all(&directory)?;
    if deb_in(&directory).is_none() {
        let mut apt = Command::new("apt-get");
        // as root, apt would fetch as a user of its own who may not write here
        apt.args(["-o", "APT::Sandbox::User=root", "download", &format!("{package}={version}")]);
        command::run(step, &workspace.log("apt-download"), apt.current_dir(&directory))?;
    }
    let file = deb_in(&directory).with_context(|| format!("apt left no package file of {package}"))?;
    Ok(Fetched { package: package.to_owned(), version, file })
}

fn deb_in(directory: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?;
    entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "deb"))
}

/// Unpacks a package file into `directory`.
pub fn unpack(fetched: &Fetched, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    command::output(Command::new("dpkg").arg("-x").arg(&fetched.file).arg(directory))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bookworm() -> Distribution {
        Distribution { id: "debian".into(), codename: "bookworm".into() }
    }

    #[test]
    fn reads_os_release() {
        let text = "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(Distribution::parse(text).expect("debian"), bookworm());
        assert!(Distribution::parse("ID=fedora\nVERSION_CODENAME=x").is_err());
        assert!(Distribution::parse("ID=debian").is_err());
    }

    #[test]
    fn takes_the_own_archives_only() {
        let text = "Debian|http://a/debian/|bookworm|main\n\
                    Debian|http://a/debian/|bookworm|main\n\
                    Debian|http://a/security/|bookworm-security|main\n\
                    Debian|http://a/debian/|bookworm-backports|main\n\
                    Docker|http://b/|bookworm|stable\n";
        let found = parse_repositories(text, &bookworm());
        let suites: Vec<&str> = found.iter().map(|repository| repository.suite.as_str()).collect();
        assert_eq!(suites, ["bookworm", "bookworm-security"]);
        assert!(found[0].line(&bookworm(), "bookworm").ends_with("http://a/debian/ bookworm main"));
    }

    #[test]
    fn an_unknown_package_is_missing() {
        let names = ["dpkg", "no-such-package-anywhere"];
        assert_eq!(missing(&names).expect("dpkg-query"), ["no-such-package-anywhere"]);
    }
}
