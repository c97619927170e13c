//! bzImage by the 64-bit entry point (Linux kernel, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use super::image::Image;
use super::{BootError, Entry, Source, load_initrd, low_end, map, write_command_line};
use crate::layout;
use crate::memory::GuestMemory;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use std::io::{Read, Seek, SeekFrom};
use vm_memory::{ByteValued, Bytes, GuestAddress};

/// Offset of the setup header in the file, and what its `header` field holds ("HdrS").
const SETUP_HEADER: u64 = 0x1f1;
const SETUP_MAGIC: u32 = 0x5372_6448;
/// `loadflags`: the kernel is loaded above 1 MiB, as every bzImage is.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: the kernel has the 64-bit entry point at 0x200 past its load address.
const XLF_KERNEL_64: u16 = 1;
/// Offset of the 64-bit entry point.
const ENTRY_OFFSET: u64 = 0x200;
/// `type_of_loader`: none of the registered ones.
const LOADER_UNDEFINED: u8 = 0xff;

/// The kernel's protected-mode part goes where the kernel will run (`pref_address`): it unpacks itself over its own
/// place, so the guest touches no memory that it does not use later.
pub(super) fn load(
    memory: &GuestMemory,
    memory_bytes: u64,
    mut kernel: Image<'_>,
    source: &Source<'_>,
) -> Result<Entry, BootError> {
    let header = read_header(&mut kernel)?;
    let body_bytes = u64::from(header.syssize) * 16;
    let offset = setup_bytes(&header);
    if kernel.length_bytes() < offset + body_bytes {
        return Err(BootError::NotAKernel("it is cut short".into()));
    }
    let start = header.pref_address.max(layout::HIGH_RAM_START);
    let end = low_end(memory_bytes);
    let floor = start.saturating_add(u64::from(header.init_size).max(body_bytes));
    if floor > end {
        return Err(BootError::KernelTooLarge { needed: floor, end });
    }
    kernel.copy_to(memory, offset, body_bytes, GuestAddress(start)).map_err(BootError::ReadKernel)?;
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
    Ok(Entry::Linux64 { address: start + ENTRY_OFFSET })
}

fn read_header(kernel: &mut Image<'_>) -> Result<setup_header, BootError> {
    let mut header = setup_header::default();
    kernel.seek(SeekFrom::Start(SETUP_HEADER)).map_err(BootError::ReadKernel)?;
    kernel
        .read_exact(header.as_mut_slice())
        .map_err(|_| BootError::NotAKernel("it is shorter than a setup header".into()))?;
    if header.header != SETUP_MAGIC {
        return Err(BootError::NotAKernel("it has no setup header".into()));
    }
    if header.version < 0x20c || header.loadflags & LOADED_HIGH == 0 || header.xloadflags & XLF_KERNEL_64 == 0
    {
        return Err(BootError::NotAKernel("it has no 64-bit entry point (boot protocol 2.12)".into()));
    }
    Ok(header)
}

/// Bytes of the real-mode part before the kernel proper; zero sectors mean four, and the boot sector comes on top.
fn setup_bytes(header: &setup_header) -> u64 {
    let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    (sectors + 1) * 512
}
