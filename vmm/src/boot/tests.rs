//! Kernels and initramfs files, right, wrong and cut short. Images are made here; real ones boot in the system tests.

use super::*;
use crate::memory;
use std::os::unix::fs::FileExt;

const MEMORY: u64 = 96 << 20;

fn file(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().expect("a temporary file");
    file.write_all_at(bytes, 0).expect("written");
    file
}

/// A bzImage of boot protocol 2.15 with `body` as its 64-bit part.
fn bzimage(body: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &(body.len() as u32).div_ceil(16).to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x200_0000_u32.to_le_bytes());
    image.extend(body);
    image.resize(1024 + body.len().next_multiple_of(16), 0);
    image
}

/// An ELF image with one segment at 16 MiB and a PVH note that points into it.
fn elf(note_type: u32) -> Vec<u8> {
    let mut image = vec![0; 0x2000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2_u16.to_le_bytes());
    put(18, &62_u16.to_le_bytes());
    put(24, &0x100_0000_u64.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &64_u16.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &2_u16.to_le_bytes());
    for (at, kind, offset, address, file_bytes, memory_bytes) in
        [(64, 1_u32, 0x1000_u64, 0x100_0000_u64, 0x800_u64, 0x10_0000_u64), (120, 4, 0x1800, 0, 20, 20)]
    {
        put(at, &kind.to_le_bytes());
        put(at + 8, &offset.to_le_bytes());
        put(at + 24, &address.to_le_bytes());
        put(at + 32, &file_bytes.to_le_bytes());
        put(at + 40, &memory_bytes.to_le_bytes());
    }
    put(0x1000, b"kernel text");
    put(0x1800, &4_u32.to_le_bytes());
    put(0x1804, &4_u32.to_le_bytes());
    put(0x1808, &note_type.to_le_bytes());
    put(0x180c, b"Xen\0");
    put(0x1810, &0x100_0100_u32.to_le_bytes());
    image
}

struct Booted {
    memory: GuestMemory,
    result: Result<Entry, BootError>,
}

fn boot(kernel: &[u8], initrd: Option<&[u8]>, command_line: &str) -> Booted {
    let memory = memory::allocate(MEMORY).expect("memory");
    let (kernel, initrd) = (file(kernel), initrd.map(file));
    let source = Source {
        kernel: &kernel,
        initrd: initrd.as_ref(),
        command_line,
        map_kernel: true,
        rsdp: layout::ACPI_TABLES,
    };
    let result = load(&memory, MEMORY, &source);
    Booted { memory, result }
}

fn read<T: vm_memory::ByteValued>(memory: &GuestMemory, address: u64) -> T {
    memory.read_obj(GuestAddress(address)).expect("in memory")
}

#[test]
fn a_bzimage_gets_its_zero_page() {
    let booted = boot(&bzimage(&[0xcc; 5000]), Some(b"an initramfs"), "console=ttyS0");
    assert_eq!(booted.result.expect("boots"), Entry::Linux64 { address: 0x100_0200 });
    let memory = booted.memory;
    assert_eq!(read::<u8>(&memory, 0x100_0000 + 4999), 0xcc);
    let field = |offset: u64| read::<u32>(&memory, layout::ZERO_PAGE + offset);
    assert_eq!(u64::from(field(0x228)), layout::COMMAND_LINE);
    assert_eq!(u64::from(field(0x70)), layout::ACPI_TABLES);
    assert_eq!(field(0x21c), 12, "initramfs bytes");
    let initrd = u64::from(field(0x218));
    assert_eq!(initrd % 4096, 0);
    assert_eq!(read::<[u8; 12]>(&memory, initrd), *b"an initramfs");
    assert_eq!(read::<u8>(&memory, layout::ZERO_PAGE + 0x1e8), 3, "ranges of the memory map");
    assert_eq!(read::<[u8; 14]>(&memory, layout::COMMAND_LINE), *b"console=ttyS0\0");
}

#[test]
fn an_elf_kernel_with_a_pvh_note_gets_its_start_info() {
    let booted = boot(&elf(18), Some(b"an initramfs"), "quiet");
    assert_eq!(booted.result.expect("boots"), Entry::Pvh { address: 0x100_0100 });
    let memory = booted.memory;
    assert_eq!(read::<[u8; 11]>(&memory, 0x100_0000), *b"kernel text");
    assert_eq!(read::<u32>(&memory, layout::PVH_START_INFO), 0x336e_c578);
    assert_eq!(read::<u32>(&memory, layout::PVH_START_INFO + 12), 1, "modules");
    let module = read::<u64>(&memory, layout::PVH_START_INFO + 16);
    let initrd = read::<u64>(&memory, module);
    assert_eq!(read::<[u8; 12]>(&memory, initrd), *b"an initramfs");
    assert_eq!(read::<u64>(&memory, layout::PVH_START_INFO + 32), layout::ACPI_TABLES);
    assert_eq!(read::<u32>(&memory, layout::PVH_START_INFO + 48), 3, "ranges of the memory map");
}

#[test]
fn what_is_no_kernel_is_refused() {
    let good = bzimage(&[0xcc; 5000]);
    let mut no_magic = good.clone();
    no_magic[0x202] = b'X';
    let mut no_64_bit_entry = good.clone();
    no_64_bit_entry[0x236] = 0;
    let mut old = good.clone();
    old[0x206] = 5;
    let mut zimage = good.clone();
    zimage[0x211] = 0;
    let mut big_endian = elf(18);
    big_endian[5] = 2;
    let mut segment_past_the_end = elf(18);
    segment_past_the_end[64 + 32..64 + 40].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut segment_outside_memory = elf(18);
    segment_outside_memory[64 + 24..64 + 32].copy_from_slice(&0xd000_0000_u64.to_le_bytes());
    let images: [(&str, Vec<u8>); 12] = [
        ("empty", vec![]),
        ("three bytes", vec![1, 2, 3]),
        ("text", b"#!/bin/sh\necho no kernel\n".repeat(100)),
        ("no magic", no_magic),
        ("no 64-bit entry", no_64_bit_entry),
        ("old protocol", old),
        ("zImage", zimage),
        ("cut short", good[..3000].to_vec()),
        ("ELF without PVH note", elf(17)),
        ("big endian ELF", big_endian),
        ("segment past the end of the file", segment_past_the_end),
        ("segment outside memory", segment_outside_memory),
    ];
    for (what, image) in images {
        let error = boot(&image, None, "").result.expect_err(what);
        assert!(matches!(error, BootError::NotAKernel(_)), "{what}: {error}");
        assert!(!error.is_initrd());
    }
    for length in (0..elf(18).len()).step_by(97) {
        // any cut is survived; one after all that matters still boots
        let _ = boot(&elf(18)[..length], None, "").result;
    }
}

#[test]
fn a_kernel_that_needs_more_memory_than_there_is_says_so() {
    let mut large = bzimage(&[0xcc; 5000]);
    large[0x260..0x264].copy_from_slice(&(MEMORY as u32).to_le_bytes());
    let error = boot(&large, None, "").result.expect_err("too large");
    assert!(matches!(error, BootError::KernelTooLarge { .. }), "{error}");
    let mut bss = elf(18);
    bss[64 + 40..64 + 48].copy_from_slice(&MEMORY.to_le_bytes());
    let error = boot(&bss, None, "").result.expect_err("too large");
    assert!(matches!(error, BootError::KernelTooLarge { .. }), "{error}");
}

#[test]
fn an_initramfs_must_fit_and_be_one() {
    let kernel = bzimage(&[0xcc; 5000]);
    let error = boot(&kernel, Some(b""), "").result.expect_err("empty");
    assert!(matches!(error, BootError::ReadInitrd(_)) && error.is_initrd());
    let large = vec![1; MEMORY as usize - 0x300_0000 + 1];
    let error = boot(&kernel, Some(&large), "").result.expect_err("too large");
    assert!(matches!(error, BootError::InitrdTooLarge { .. }) && error.is_initrd(), "{error}");
    assert!(boot(&kernel, Some(&large[..large.len() - 4096]), "").result.is_ok(), "the largest that fits");
}

#[test]
fn a_command_line_longer_than_the_kernel_takes_is_refused() {
    let mut kernel = bzimage(&[0xcc; 5000]);
    kernel[0x238..0x23c].copy_from_slice(&10_u32.to_le_bytes());
    assert!(boot(&kernel, None, "0123456789").result.is_ok());
    let error = boot(&kernel, None, "0123456789a").result.expect_err("too long");
    assert!(matches!(error, BootError::CommandLineTooLong { bytes: 11, max: 10 }));
}
