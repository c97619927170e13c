//! `cp`: one file, either way.

use crate::args::Copy;
use crate::failure::advised;
use crate::lookup;
use anyhow::{Context, Result, bail};
use pinfold_domain::SandboxId;
use pinfold_sdk::{Client, WriteOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// sandbox and absolute path in it
    Guest(String, String),
    /// `None`: stdin or stdout
    Local(Option<PathBuf>),
}

/// `SANDBOX:/path` is in a guest. A local path with a colon is written with a `./` or `/` before it.
fn place(text: &str) -> Place {
    match text.split_once(':') {
        Some((sandbox, path)) if !sandbox.is_empty() && !sandbox.contains('/') => {
            Place::Guest(sandbox.to_owned(), path.to_owned())
        }
        _ if text == "-" => Place::Local(None),
        _ => Place::Local(Some(text.into())),
    }
}

pub async fn run(client: &Client, options: Copy) -> Result<i32> {
    let bytes = match (place(&options.source), place(&options.destination)) {
        (Place::Guest(sandbox, path), Place::Local(to)) => {
            let id = lookup::id(client, &sandbox).await?;
            download(client, id, &path, options.user.as_deref(), to).await?
        }
        (Place::Local(from), Place::Guest(sandbox, path)) => {
            let id = lookup::id(client, &sandbox).await?;
            upload(client, id, from, &path, &options).await?
        }
        (Place::Guest(..), Place::Guest(..)) => bail!(advised(
            "both sides are in a sandbox",
            "copy through this machine: `pinfold cp A:/path - | pinfold cp - B:/path`",
        )),
        (Place::Local(_), Place::Local(_)) => {
            bail!(advised("neither side is in a sandbox", "write one side like SANDBOX:/absolute/path"))
        }
    };
    eprintln!("{}", crate::parse::format_size(bytes));
    Ok(0)
}

/// The last component of a path in a guest.
fn file_name(path: &str) -> Result<&str> {
    let name = path.rsplit('/').next().unwrap_or_default();
    if name.is_empty() || name == "." || name == ".." {
        bail!("{path:?} names no file");
    }
    Ok(name)
}

/// The file appears whole at its destination, or not at all.
async fn download(
    client: &Client,
    id: SandboxId,
    path: &str,
    user: Option<&str>,
    to: Option<PathBuf>,
) -> Result<u64> {
    let context = || format!("cannot read {path} in {id}");
    let reader = client.read_file(id, path, user).await.with_context(context)?;
    let mode = reader.info().mode & 0o777;
    let Some(mut to) = to else {
        return reader.copy_to(&mut tokio::io::stdout()).await.with_context(context);
    };
    if to.is_dir() {
        to.push(file_name(path)?);
    }
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let local = || format!("cannot write {}", to.display());
    let temporary = tempfile::NamedTempFile::new_in(parent).with_context(local)?;
    let mut file = tokio::fs::File::from_std(temporary.reopen().with_context(local)?);
    let bytes = reader.copy_to(&mut file).await.with_context(context)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode)).await.with_context(local)?;
    temporary.persist(&to).with_context(local)?;
    Ok(bytes)
}

async fn upload(
    client: &Client,
    id: SandboxId,
    from: Option<PathBuf>,
    path: &str,
    options: &Copy,
) -> Result<u64> {
    let mut write =
        WriteOptions { user: options.user.clone(), mode: None, make_directories: options.parents };
    let mut path = path.to_owned();
    let Some(from) = from else {
        let written = client.write_file(id, &path, write, &mut tokio::io::stdin()).await;
        return written.with_context(|| format!("cannot write {path} in {id}"));
    };
    if path.ends_with('/') {
        path.push_str(
            from.file_name().and_then(|name| name.to_str()).context("the local name is not UTF-8")?,
        );
    }
    let local = || format!("cannot read {}", from.display());
    let mut file = tokio::fs::File::open(&from).await.with_context(local)?;
    let metadata = file.metadata().await.with_context(local)?;
    if !metadata.is_file() {
        bail!(advised(
            format!("{} is not a regular file", from.display()),
            "for a directory: `tar c DIR | pinfold exec SANDBOX -- tar x -C /where`",
        ));
    }
    write.mode = Some(metadata.permissions().mode() & 0o777);
    client
        .write_file(id, &path, write, &mut file)
        .await
        .with_context(|| format!("cannot write {path} in {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        assert_eq!(place("web:/etc/passwd"), Place::Guest("web".into(), "/etc/passwd".into()));
        assert_eq!(place("./a:b"), Place::Local(Some("./a:b".into())));
        assert_eq!(place("/a:b"), Place::Local(Some("/a:b".into())));
        assert_eq!(place("-"), Place::Local(None));
        assert_eq!(place("file"), Place::Local(Some("file".into())));
    }

    #[test]
    fn a_guest_cannot_choose_where_its_file_lands() {
        assert_eq!(file_name("/tmp/out.txt").unwrap(), "out.txt");
        for bad in ["/", "/tmp/", "/tmp/..", "/tmp/."] {
            assert!(file_name(bad).is_err(), "{bad}");
        }
    }
}
