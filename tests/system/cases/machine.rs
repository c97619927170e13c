//! What the VMM promises of a machine by itself, seen with a Linux guest: its memory, its processors, its saved state.

use crate::bare::{BASE_V2, BEYOND_V3, Bare, HIDDEN, MEMORY_MIB, Machine, OF_V3};
use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use pinfold_domain::Reason;
use pinfold_vmm_api::control::{ExitReason, Request, Response, SnapshotKind};
use std::time::Duration;

fn flags(text: &str) -> Result<Vec<&str>> {
    // a guest's line has the time before it
    let line = text.lines().find_map(|line| line.split_once("flags")).context("no flags are told")?.1;
    Ok(line.split_whitespace().collect())
}

/// Memory of each kind, with each CPU template: the host's mapping and the guest's processors are what was asked for.
pub async fn memory_and_processors_are_of_the_kind_that_was_asked_for(context: Context) -> Result<()> {
    let bare = Bare::new(context).await?;
    let outcome = each_kind(&bare).await;
    bare.clear().await?;
    outcome
}

async fn each_kind(bare: &Bare) -> Result<()> {
    const HUGE: &str = "--backing huge_pages --cpu-template x8664_v3";
    let node = bare.node("grep -m1 ^flags /proc/cpuinfo").await?;
    let node = flags(&node)?;
    ensure!(node.contains(&"svm") || node.contains(&"vmx"), "the node has no virtualisation to hide");

    let refused = bare.boot("refused", HUGE).await?.ended().await?;
    ensure!(refused.reason == ExitReason::BadConfig, "{refused:?}");
    ensure!(
        refused.message.contains("huge pages") && refused.message.contains("nr_hugepages"),
        "{refused:?}"
    );

    let machine = bare.boot("anonymous", "--vcpus 2").await?;
    let guest = ready(&machine).await?;
    let (name, page, seen) = machine.memory().await?;
    ensure!(name == "none" && page == 4096, "anonymous memory is {name}, pages of {page}");
    ensure!(["dd", "hg"].iter().all(|flag| seen.iter().any(|s| s == flag)), "{seen:?}");
    ensure!(!seen.contains(&"sh".to_owned()), "anonymous memory is shared: {seen:?}");
    let guest = flags(&guest)?;
    for flag in OF_V3.iter().chain(&BEYOND_V3).chain(&BASE_V2).filter(|flag| node.contains(flag)) {
        ensure!(guest.contains(flag), "the host's {flag} is hidden from a guest that has all of its host's");
    }
    machine.kill().await?;

    let machine = bare.boot("memfd", "--vcpus 2 --backing memfd --cpu-template x8664_v2").await?;
    let guest = ready(&machine).await?;
    let (name, page, seen) = machine.memory().await?;
    ensure!(name.starts_with("/memfd:") && page == 4096, "a memfd is {name}, pages of {page}");
    ensure!(["dd", "sh"].iter().all(|flag| seen.iter().any(|s| s == flag)), "{seen:?}");
    has(&flags(&guest)?, &BASE_V2, &[&OF_V3[..], &BEYOND_V3].concat())?;
    machine.kill().await?;

    // one page more than the guest's
    let pages = MEMORY_MIB / 2 + 1;
    let set_aside = format!(
        "echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory; \
         echo {pages} > /proc/sys/vm/nr_hugepages; cat /proc/sys/vm/nr_hugepages"
    );
    let found = bare.node(&set_aside).await?;
    ensure!(found.trim() == pages.to_string(), "{} huge pages of {pages} can be set aside", found.trim());
    let machine = bare.boot("huge", &format!("--vcpus 2 {HUGE}")).await?;
    let guest = ready(&machine).await?;
    let (name, page, seen) = machine.memory().await?;
    ensure!(page == 2 << 20, "huge pages are {name}, pages of {page}");
    ensure!(["dd", "ht"].iter().all(|flag| seen.iter().any(|s| s == flag)), "{seen:?}");
    has(&flags(&guest)?, &[&BASE_V2[..], &OF_V3].concat(), &BEYOND_V3)?;
    machine.kill().await
}

/// What the console has told by the time that the guest is up.
async fn ready(machine: &Machine<'_>) -> Result<String> {
    let said = machine.says("READY").await?;
    ensure!(said.contains("processors 2"), "{said}");
    for nested in HIDDEN {
        ensure!(!flags(&said)?.contains(&nested), "the guest is offered {nested}");
    }
    Ok(said)
}

fn has(guest: &[&str], wanted: &[&str], hidden: &[&str]) -> Result<()> {
    let missing: Vec<_> = wanted.iter().filter(|flag| !guest.contains(flag)).collect();
    ensure!(missing.is_empty(), "the template has {missing:?}, the guest has not");
    let shown: Vec<_> = hidden.iter().filter(|flag| guest.contains(flag)).collect();
    ensure!(shown.is_empty(), "the template hides {shown:?}, the guest sees them");
    Ok(())
}

/// A full snapshot and what changed after it, merged: two processors, the network, the balloon and the power button of the
/// machine that comes of it work, what was written is there, and the guest was told that it is another.
pub async fn restored_machine_goes_on_with_all_its_devices(context: Context) -> Result<()> {
    let bare = Bare::new(context).await?;
    let outcome = saved_and_restored(&bare).await;
    bare.clear().await?;
    outcome
}

async fn saved_and_restored(bare: &Bare) -> Result<()> {
    const BALLOON_BYTES: u64 = 16 << 20;
    const FORKED: &str = "dmesg | grep -c 'reseeded due to virtual machine fork'";
    let first = bare.boot("first", "--vcpus 2 --balloon --tap bare0").await?;
    first.connect("bare0").await?;
    ready(&first).await?;
    first.guest_until("echo answers", |said| said == "answers\n").await?;
    first.guest("echo before > /tmp/early; echo before > /tmp/late").await?;
    let full = first.save("full", SnapshotKind::FullTracked).await?;
    first.done(&Request::Resume).await?;
    // pages that the full snapshot has, and pages that it has not
    let blob = "echo after > /tmp/late; dd if=/dev/urandom of=/tmp/blob bs=64k count=32 2>/dev/null";
    let sum = first.guest(&format!("{blob}; sha256sum /tmp/blob")).await?;
    let counted = counts(&first).await?;
    ensure!(
        first.guest(FORKED).await? == "0\n",
        "a machine that only stood still was told that it is another"
    );
    let diff = first.save("diff", SnapshotKind::Diff).await?;
    println!(
        "    full: {} KiB of memory, diff: {} KiB",
        full.memory_data_bytes >> 10,
        diff.memory_data_bytes >> 10
    );
    ensure!((2 << 20..full.memory_data_bytes).contains(&diff.memory_data_bytes), "{full:?}, then {diff:?}");
    first.kill().await?;
    bare.merge("full", "diff", "merged").await?;

    let second =
        bare.start("second", "--restore /run/bare/saved-merged --vcpus 2 --balloon --tap bare0").await?;
    second.connect("bare0").await?;
    let content = "cat /tmp/early /tmp/late; sha256sum /tmp/blob";
    let content = second.guest_until(content, |said| said.contains("blob")).await?;
    ensure!(content == format!("before\nafter\n{sum}"), "{content:?}, not {sum:?}");
    let further = counts(&second).await?;
    for (processor, (before, after)) in counted.into_iter().zip(further).enumerate() {
        ensure!(after >= before, "processor {processor} had counted to {before}, and is at {after}");
    }
    let ticks = "cat /tmp/count0 /tmp/count1";
    let now = format!("{}\n{}\n", further[0], further[1]);
    let goes_on =
        |said: &str| said.lines().zip(now.lines()).filter(|(after, before)| after != before).count() == 2;
    second.guest_until(ticks, goes_on).await.context("a processor stands still")?;
    second.guest_until(FORKED, |said| said == "1\n").await.context("the guest was not told by VMGenID")?;

    second.done(&Request::SetBalloon { target_bytes: BALLOON_BYTES }).await?;
    balloon_reaches(&second, BALLOON_BYTES).await?;
    second.done(&Request::SetBalloon { target_bytes: 0 }).await?;
    balloon_reaches(&second, 0).await?;

    second.done(&Request::PowerButton).await?;
    let record = second.ended().await?;
    ensure!(record.reason == ExitReason::GuestPowerOff, "{record:?}");
    second.says("THE BUTTON WAS PRESSED").await?;
    from_a_page_fault_handler(bare, &content).await
}

/// The same snapshot, with its memory from another process: the guest goes on, and ends with the process that it depends on.
async fn from_a_page_fault_handler(bare: &Bare, content: &str) -> Result<()> {
    let options = "--restore /run/bare/saved-merged --handler --vcpus 2 --balloon --tap bare0";
    let machine = bare.start("handled", options).await?;
    machine.connect("bare0").await?;
    let read = "cat /tmp/early /tmp/late; sha256sum /tmp/blob";
    machine.guest_until(read, |said| said == content).await?;
    bare.node("kill -9 $(cat {}/m-handled/handler)").await?;
    let record = machine.ended().await?;
    ensure!(record.reason == ExitReason::PageFaultHandler, "{record:?}");
    Ok(())
}

/// How far each processor has counted.
async fn counts(machine: &Machine<'_>) -> Result<[u64; 2]> {
    let text = machine.guest("cat /tmp/count0 /tmp/count1").await?;
    let counts: Vec<u64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
    counts.try_into().map_err(|_| anyhow::anyhow!("two processors, but {text:?}"))
}

async fn balloon_reaches(machine: &Machine<'_>, bytes: u64) -> Result<()> {
    let mut seen = 0;
    for _ in 0..100 {
        seen = machine.status().await?.counters.balloon_bytes;
        if seen == bytes {
            return Ok(());
        }
        // the guest's driver takes its time, and tells nobody
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    anyhow::bail!("the balloon holds {seen} bytes, not {bytes}")
}

/// The button of a sandbox's machine, pressed on its VMM's control socket: the guest's own shutdown, not a cut.
pub async fn power_button_is_a_clean_shutdown(context: Context) -> Result<()> {
    let bare = Bare::new(context.clone()).await?;
    let id = context.sandbox().await?;
    let mut logs = context.client.logs(id, 0, true).await?;
    let pressed = bare.ask_sandbox(id, &Request::PowerButton).await?;
    ensure!(pressed == Response::Done, "the button was answered {pressed:?}");
    let mut console = String::new();
    let told = async {
        while !console.contains("reboot: Power down") {
            let chunk = logs.next().await?.context("the console ended")?;
            console.push_str(&String::from_utf8_lossy(&chunk.data));
        }
        anyhow::Ok(())
    };
    let told = tokio::time::timeout(Duration::from_secs(30), told).await;
    told.context("in time").flatten().with_context(|| format!("its kernel did not shut down: {console}"))?;
    let ended = context.ended(id).await?;
    let cause = ended.cause.context("it has no cause")?;
    ensure!(cause.reason == Reason::GuestPowerOff, "{} ({})", cause.reason.as_str(), cause.message);
    context.reserved_is_zero_within(Duration::from_secs(20)).await
}
