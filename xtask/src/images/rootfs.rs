//! The guest's root file system: packages of the machine's own distribution in one read-only erofs image.
//!
//! Not compressed: all sandboxes of a node share its pages in the node's page cache, and reading costs no CPU time.

use super::{replace, write_if_changed};
use crate::apt::{self, Distribution};
use crate::command;
use crate::progress::{self, Step};
use crate::stamp::{self, Key};
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Every file in the image has this time, so that the same packages give the same image: 2026-01-01 00:00 UTC.
const EPOCH: &str = "1767225600";
const UUID: &str = "5f1d0a52-0000-4000-8000-70696e666f6c";

#[derive(Serialize)]
struct ImageDescription<'a> {
    name: &'a str,
    description: &'a str,
}

/// Makes `images/<name>/image.json`.
pub fn describe(workspace: &Workspace, name: &str, description: &str) -> Result<()> {
    let json = serde_json::to_vec_pretty(&ImageDescription { name, description })?;
    write_if_changed(&workspace.images().join(name).join("image.json"), &json)
}

pub fn make(workspace: &Workspace) -> Result<()> {
    let recipe = workspace.root.join("images/guest");
    let (list, customize) = (recipe.join("packages"), recipe.join("customize"));
    let distribution = Distribution::of_this_machine()?;
    let key = Key::new(1)
        .with("codename", &distribution.codename)
        .with("epoch", EPOCH)
        .with_files([list.as_path(), customize.as_path()])?;
    let image = workspace.images().join("base/rootfs.erofs");
    let title = format!("{} {}", distribution.id, distribution.codename);
    describe(workspace, "base", &format!("{title} with Python 3, git, bash and small build tools"))?;
    if stamp::is_fresh(workspace, "rootfs", &key, &[&image]) {
        return Ok(());
    }
    let packages =
        parse_packages(&fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?);
    let step = Step::begin(
        "root file system",
        &format!("{title} packages that every sandbox sees, read-only and shared: {}", packages.join(" ")),
    );
    let root = workspace.cache().join("rootfs");
    remove(&root)?;
    build(workspace, &step, &distribution, &packages, &customize, &root)?;
    record_versions(workspace, &root)?;
    pack(workspace, &root, &image)?;
    remove(&root)?;
    stamp::store(workspace, "rootfs", &key)?;
    step.done(&progress::megabytes(fs::metadata(&image)?.len()));
    Ok(())
}

/// One package a line, `#` begins a comment.
fn parse_packages(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn build(
    workspace: &Workspace,
    step: &Step,
    distribution: &Distribution,
    packages: &[String],
    customize: &Path,
    root: &Path,
) -> Result<()> {
    apt::ensure_lists(workspace, step)?;
    fs::create_dir_all(workspace.cache())?;
    let sources = workspace.cache().join("rootfs-sources.list");
    fs::write(&sources, apt::source_lines(distribution)?.join("\n") + "\n")?;
    // what mmdebstrap mounts in the new root goes with it, also when it is killed
    let mut mmdebstrap = command::privileged("unshare")?;
    mmdebstrap.args(["--mount", "env", &format!("SOURCE_DATE_EPOCH={EPOCH}")]);
    mmdebstrap.args(["mmdebstrap", "--variant=minbase", "--format=directory"]);
    mmdebstrap.arg(format!("--include={}", packages.join(",")));
    mmdebstrap.arg("--aptopt=Acquire::Languages \"none\"");
    for path in ["doc", "man", "locale", "info", "lintian", "bug"] {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{path}/*"));
    }
    mmdebstrap.arg(format!("--customize-hook=sh {} \"$1\"", shell_quoted(customize)));
    mmdebstrap.arg(&distribution.codename).arg(root).arg(&sources);
    command::run(step, &workspace.log("rootfs"), &mut mmdebstrap)
}

fn shell_quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

fn record_versions(workspace: &Workspace, root: &Path) -> Result<()> {
    let mut query = Command::new("dpkg-query");
    query.arg(format!("--admindir={}", root.join("var/lib/dpkg").display()));
    let versions = command::output(query.args(["-W", "-f=${Package} ${Version}\n"]))?;
    fs::write(workspace.build.join("rootfs.versions"), versions)?;
    Ok(())
}

fn pack(workspace: &Workspace, root: &Path, image: &Path) -> Result<()> {
    let temporary = workspace.cache().join("rootfs.erofs");
    let mut mkfs = command::privileged("mkfs.erofs")?;
    mkfs.args(["--quiet", &format!("-T{EPOCH}"), &format!("-U{UUID}")]).arg(&temporary).arg(root);
    command::output(&mut mkfs)?;
    let content = fs::read(&temporary).with_context(|| format!("reading {}", temporary.display()))?;
    replace(image, |out| Ok(out.write_all(&content)?))?;
    remove(&temporary)
}

/// Removes what sudo may have made.
fn remove(path: &Path) -> Result<()> {
    if path.exists() {
        command::output(command::privileged("rm")?.args(["-rf", "--one-file-system"]).arg(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_lists_have_comments() {
        assert_eq!(parse_packages("# a\npython3 # b\n\n git\n"), ["python3", "git"]);
    }

    #[test]
    fn quotes_for_the_shell() {
        assert_eq!(shell_quoted(Path::new("/a b/c'd")), r"'/a b/c'\''d'");
    }
}
