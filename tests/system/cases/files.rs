//! Files in and out.

use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use pinfold_domain::spec::defaults;
use pinfold_domain::{Reason, Resources, SandboxId};
use pinfold_sdk::{NewSandbox, WriteOptions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// Bytes that repeat nowhere near, so that a lost or doubled piece shows.
fn pattern(length: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(next).collect()
}

pub async fn content_and_mode_survive(context: Context) -> Result<()> {
    let id = context.sandbox().await?.to_string();
    let directory = tempfile::tempdir()?;
    let (up, down) = (directory.path().join("up"), directory.path().join("down"));
    let content = pattern(3 * 1024 * 1024 + 17);
    std::fs::write(&up, &content)?;
    std::fs::set_permissions(&up, std::fs::Permissions::from_mode(0o750))?;
    let (up, down_text) = (up.display().to_string(), down.display().to_string());
    let place = format!("{id}:/workspace/deep/file");
    let output = context.cli(&["cp", "--parents", &up, &place], b"").await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = context.cli(&["cp", &place, &down_text], b"").await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(std::fs::read(&down)? == content, "the content has changed");
    ensure!(std::fs::metadata(&down)?.permissions().mode() & 0o777 == 0o750);
    // through pipes, and an empty file
    let output = context.cli(&["cp", "-", &format!("{id}:/tmp/empty")], b"").await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = context.cli(&["cp", &format!("{id}:/tmp/empty"), "-"], b"").await?;
    ensure!(output.status.success() && output.stdout.is_empty());
    Ok(())
}

async fn read_reason(context: &Context, id: SandboxId, path: &str) -> Result<Reason> {
    // a FIFO or a device must not hold the call
    let read = tokio::time::timeout(Duration::from_secs(20), context.client.read_file(id, path, None));
    match read.await.with_context(|| format!("reading {path} hangs"))? {
        Ok(_) => anyhow::bail!("{path} could be read"),
        Err(error) => Ok(error.cause().reason),
    }
}

async fn write_reason(context: &Context, id: SandboxId, path: &str) -> Result<Reason> {
    let mut content = &b"x"[..];
    let write = context.client.write_file(id, path, WriteOptions::default(), &mut content);
    let write = tokio::time::timeout(Duration::from_secs(20), write);
    match write.await.with_context(|| format!("writing {path} hangs"))? {
        Ok(_) => anyhow::bail!("{path} could be written"),
        Err(error) => Ok(error.cause().reason),
    }
}

pub async fn bad_paths_are_refused(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    let long = format!("/{}", "a".repeat(5000));
    for path in ["", "relative", "../etc/passwd", "/tmp/../etc/passwd", "/etc/..", "/a\0b", long.as_str()] {
        let shown: String = path.chars().take(30).collect();
        ensure!(read_reason(&context, id, path).await? == Reason::InvalidArgument, "read {shown:?}");
        ensure!(write_reason(&context, id, path).await? == Reason::InvalidArgument, "write {shown:?}");
    }
    ensure!(read_reason(&context, id, "/no/such/file").await? == Reason::FileNotFound);
    ensure!(write_reason(&context, id, "/no/such/directory/file").await? == Reason::FileNotFound);
    Ok(())
}

pub async fn special_files_are_refused(context: Context) -> Result<()> {
    let id = context.sandbox().await?;
    context.shell(id, "mkfifo /tmp/fifo; mkdir /tmp/dir; ln -s /etc/hostname /tmp/link").await?;
    for path in ["/tmp/dir", "/tmp/fifo", "/dev/zero", "/"] {
        ensure!(read_reason(&context, id, path).await? == Reason::FileWrongType, "read {path}");
    }
    for path in ["/tmp/dir", "/tmp/fifo"] {
        ensure!(write_reason(&context, id, path).await? == Reason::FileWrongType, "write {path}");
    }
    let read = context.client.read_file(id, "/etc/shadow", Some("sandbox")).await;
    let error = read.err().context("another user's file could be read")?;
    ensure!(error.cause().reason == Reason::FilePermission, "{error}");
    let content = context.client.read_file(id, "/tmp/link", None).await?.bytes(4096).await?;
    ensure!(!content.is_empty());
    Ok(())
}

pub async fn write_past_the_disk_limit_changes_nothing(context: Context) -> Result<()> {
    let resources = Resources { disk_bytes: 32 * 1024 * 1024, ..defaults::RESOURCES };
    let new = NewSandbox { resources: Some(resources), ..NewSandbox::default() };
    let id = context.start(new).await?.id;
    context.shell(id, "echo before > /root/file").await?;
    let content = vec![7_u8; 40 * 1024 * 1024];
    let write =
        context.client.write_file(id, "/root/file", WriteOptions::default(), &mut content.as_slice()).await;
    let error = write.err().context("40 MiB fit on a disk of 32 MiB")?;
    ensure!(error.cause().reason == Reason::DiskFull, "{error}");
    let left = context
        .shell(id, "cat /root/file; ls -A /root | grep -vx file | grep -v '^\\.[a-z]*rc$\\|profile' || true");
    let left = left.await?;
    ensure!(left.starts_with("before\n"), "the old content is gone: {left:?}");
    // what was half written is gone, so that there is room again
    context.shell(id, "dd if=/dev/zero of=/root/again bs=1M count=10 2>/dev/null").await?;
    Ok(())
}
