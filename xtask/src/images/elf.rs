//! The ELF image inside a bzImage: unpacked once when images are made, so that a VMM maps it instead of having every
//! guest unpack it. Machines that boot it share its pages.
//!
//! The payload's place is in the setup header (Linux kernel, Documentation/arch/x86/boot.rst, `payload_offset`); the kernel's
//! build appends the unpacked length to all forms but gzip, which has it itself.

use crate::command;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: usize = 512;
const LENGTH_BYTES: usize = 4;

/// How a payload begins, and what unpacks it from its standard input.
const FORMS: &[(&[u8], &str, &[&str])] = &[
    (b"\x02\x21\x4c\x18", "lz4", &["-dc"]),
    (b"\x28\xb5\x2f\xfd", "zstd", &["-dc"]),
    (b"\xfd7zXZ", "xz", &["-dc", "--single-stream"]),
    (b"\x1f\x8b", "gzip", &["-dc"]),
];

/// The kernel of the bzImage at `path`, as an ELF image.
pub fn unpack(path: &Path) -> Result<Vec<u8>> {
    let context = || format!("unpacking {}", path.display());
    let image = fs::read(path).with_context(context)?;
    let payload = payload(&image).with_context(context)?;
    let known = FORMS.iter().find(|(magic, ..)| payload.starts_with(magic));
    let (_, tool, arguments) = known.with_context(|| format!("{}: unknown compression", path.display()))?;
    let (packed, length) = payload.split_at(payload.len() - LENGTH_BYTES);
    let whole = if *tool == "gzip" { payload } else { packed };
    let elf = filter(tool, arguments, whole).with_context(context)?;
    let expected = u32::from_le_bytes(length.try_into()?) as usize;
    ensure!(elf.len() == expected, "{}: {} bytes instead of {expected}", path.display(), elf.len());
    ensure!(elf.starts_with(b"\x7fELF"), "{} holds no ELF image", path.display());
    Ok(elf)
}

fn payload(image: &[u8]) -> Result<&[u8]> {
    let number = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let sectors = usize::from(*image.get(SETUP_SECTORS).context("no setup header")?);
    let setup = (if sectors == 0 { 4 } else { sectors } + 1) * SECTOR_BYTES;
    let (offset, length) = number(PAYLOAD_OFFSET).zip(number(PAYLOAD_LENGTH)).context("no setup header")?;
    let start = setup + offset;
    match image.get(start..start + length) {
        Some(payload) if length > LENGTH_BYTES => Ok(payload),
        _ => bail!("its payload of {length} bytes at {start} is not in the file"),
    }
}

/// What `tool` makes of `input`.
fn filter(tool: &str, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let path =
        command::find(tool).with_context(|| format!("{tool} is missing (package of the same name)"))?;
    let mut child =
        Command::new(path).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    // beside reading its output: each pipe holds little
    let output = std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(input));
        let output = child.wait_with_output();
        // a tool that ends early breaks the pipe; its exit code tells
        let _ = writer.join();
        output
    })?;
    ensure!(output.status.success(), "{tool} could not unpack it");
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage of one setup sector with `packed` as its payload, 100 bytes into its protected-mode part.
    fn bzimage(packed: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR_BYTES + 100];
        image[SETUP_SECTORS] = 1;
        image[PAYLOAD_OFFSET..][..4].copy_from_slice(&100_u32.to_le_bytes());
        image[PAYLOAD_LENGTH..][..4].copy_from_slice(&(packed.len() as u32).to_le_bytes());
        image.extend(packed);
        image
    }

    fn unpacked(image: &[u8]) -> Result<Vec<u8>> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("vmlinuz");
        fs::write(&path, image).expect("written");
        unpack(&path)
    }

    #[test]
    fn each_form_of_kernels_gives_its_elf() {
        let elf: Vec<u8> = b"\x7fELF".iter().copied().chain((0..200_000).map(|n| (n % 251) as u8)).collect();
        let forms: [(&str, &[&str]); 4] =
            [("lz4", &["-l", "-c"]), ("zstd", &["-c"]), ("xz", &["-c"]), ("gzip", &["-c"])];
        for (tool, arguments) in forms {
            let mut packed = filter(tool, arguments, &elf).expect(tool);
            if tool != "gzip" {
                packed.extend((elf.len() as u32).to_le_bytes());
            }
            assert!(unpacked(&bzimage(&packed)).expect(tool) == elf, "{tool}");
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let text = filter("gzip", &["-c"], b"no kernel at all").expect("gzip");
        let mut cut = bzimage(&text);
        cut.truncate(cut.len() - 1);
        for (image, message) in [
            (bzimage(&text), "holds no ELF image"),
            (cut, "is not in the file"),
            (bzimage(b"neither form"), "unknown compression"),
            (vec![0; 100], "no setup header"),
        ] {
            let error = unpacked(&image).expect_err(message);
            assert!(format!("{error:#}").contains(message), "{error:#}");
        }
    }
}
