//! bzImage by the 64-bit entry point (Linux kernel, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use super::image::Image;
use super::{BootError, Entry, Source, load_initrd, low_end, map, write_command_line};
use crate::layout;
use crate::memory::GuestMemory;
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{Bytes, GuestAddress};

/// `xloadflags`: the kernel has the 64-bit entry point at 0x200 past its load address.
const XLF_KERNEL_64: u16 = 1;
/// Offset of the 64-bit entry point.
const ENTRY_OFFSET: u64 = 0x200;
/// `type_of_loader`: none of the registered ones.
const LOADER_UNDEFINED: u8 = 0xff;

pub(super) fn load(
    memory: &GuestMemory,
    memory_bytes: u64,
    mut kernel: Image<'_>,
    source: &Source<'_>,
) -> Result<Entry, BootError> {
    let start = GuestAddress(layout::HIGH_RAM_START);
    let loaded = BzImage::load(memory, Some(start), &mut kernel, Some(start))
        .map_err(|error| BootError::NotAKernel(error.to_string()))?;
    let header = loaded.setup_header.ok_or_else(|| BootError::NotAKernel("it has no setup header".into()))?;
    let flags = header.xloadflags;
    if header.version < 0x20c || flags & XLF_KERNEL_64 == 0 {
        return Err(BootError::NotAKernel("it has no 64-bit entry point (boot protocol 2.12)".into()));
    }
    let body_bytes = u64::from(header.syssize) * 16;
    if kernel.length_bytes() < setup_bytes(&header) + body_bytes {
        return Err(BootError::NotAKernel("it is cut short".into()));
    }
    let end = low_end(memory_bytes);
    let floor = memory_needed(&header, loaded.kernel_end);
    if floor > end {
        return Err(BootError::KernelTooLarge { needed: floor, end });
    }
    write_command_line(memory, source.command_line, header.cmdline_size)?;
    let limit = end.min(u64::from(header.initrd_addr_max) + 1);
    let initrd = load_initrd(memory, source.initrd, floor, limit)?;

    let mut params = boot_params { hdr: header, acpi_rsdp_addr: source.rsdp, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = initrd.address as u32;
        params.hdr.ramdisk_size = initrd.bytes as u32;
    }
    let ranges = map::ranges(memory_bytes);
    params.e820_entries = ranges.len() as u8;
    let mut table = params.e820_table;
    for (slot, range) in table.iter_mut().zip(&ranges) {
        *slot = boot_e820_entry { addr: range.start, size: range.bytes, r#type: range.kind.number() };
    }
    params.e820_table = table;
    memory.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    Ok(Entry::Linux64 { address: loaded.kernel_load.0 + ENTRY_OFFSET })
}

/// Bytes of the real-mode part before the kernel proper; zero sectors mean four, and the boot sector comes on top.
fn setup_bytes(header: &setup_header) -> u64 {
    let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    (sectors + 1) * 512
}

/// First address past all that the kernel uses before it reads its memory map.
fn memory_needed(header: &setup_header, kernel_end: u64) -> u64 {
    let preferred = header.pref_address.max(layout::HIGH_RAM_START);
    preferred.saturating_add(u64::from(header.init_size)).max(kernel_end)
}
