//! Images and kernels that cannot work: the sandbox fails with the true reason, in time, and gives its room back.

use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use pinfold_domain::{Phase, Reason};
use pinfold_sdk::NewSandbox;
use std::time::{Duration, Instant};

const START_TIMEOUT: Duration = Duration::from_secs(60);

async fn fails_with(context: &Context, new: NewSandbox, reason: Reason) -> Result<()> {
    let began = Instant::now();
    let new = NewSandbox { start_timeout: Some(START_TIMEOUT), ..new };
    let sandbox = context.client.create(new).await?;
    let ended = context.ended(sandbox.id).await?;
    let cause = ended.cause.context("it has no cause")?;
    println!("    {} after {:.1} s: {}", cause.reason.as_str(), began.elapsed().as_secs_f32(), cause.message);
    ensure!(ended.phase == Phase::Failed, "{}", ended.phase);
    ensure!(cause.reason == reason, "{} instead of {}", cause.reason.as_str(), reason.as_str());
    ensure!(!cause.message.is_empty(), "the cause has no message");
    ensure!(began.elapsed() < START_TIMEOUT + Duration::from_secs(15), "it took {:?}", began.elapsed());
    context.reserved_is_zero_within(Duration::from_secs(20)).await
}

pub async fn kernel_that_is_none(context: Context) -> Result<()> {
    let new = NewSandbox { kernel: Some("test-not-a-kernel".into()), ..NewSandbox::default() };
    fails_with(&context, new, Reason::KernelInvalid).await
}

pub async fn initramfs_that_panics(context: Context) -> Result<()> {
    let new = NewSandbox { kernel: Some("test-panic-initrd".into()), ..NewSandbox::default() };
    fails_with(&context, new, Reason::GuestPanic).await
}

pub async fn root_image_that_is_cut(context: Context) -> Result<()> {
    let new = NewSandbox { image: Some("test-truncated".into()), ..NewSandbox::default() };
    fails_with(&context, new, Reason::RootImageInvalid).await
}
