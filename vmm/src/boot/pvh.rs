//! An ELF kernel by its PVH entry point (Xen, docs/misc/pvh.pandoc): 32-bit, paging off, EBX -> `hvm_start_info`.

use super::image::{Image, MappedImage};
use super::{BootError, Entry, Source, load_initrd, low_end, map, write_command_line};
use crate::layout;
use crate::memory::GuestMemory;
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Bytes, GuestAddress};

/// Longest command line of an x86 kernel without its NUL (`COMMAND_LINE_SIZE` - 1).
const COMMAND_LINE_MAX: u32 = 2047;

pub(super) fn load(
    memory: &GuestMemory,
    memory_bytes: u64,
    mut kernel: Image<'_>,
    source: &Source<'_>,
) -> Result<Entry, BootError> {
    let lowest = Some(GuestAddress(layout::HIGH_RAM_START));
    let loaded = if source.map_kernel {
        Elf::load(memory, None, &mut MappedImage::new(kernel, memory), lowest)
    } else {
        Elf::load(memory, None, &mut kernel, lowest)
    };
    let loaded = loaded.map_err(|error| BootError::NotAKernel(error.to_string()))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NotAKernel("it is an ELF image without a PVH note".into()));
    };
    let end = low_end(memory_bytes);
    if loaded.kernel_end > end {
        return Err(BootError::KernelTooLarge { needed: loaded.kernel_end, end });
    }
    write_command_line(memory, source.command_line, COMMAND_LINE_MAX)?;
    let initrd = load_initrd(memory, source.initrd, loaded.kernel_end, end)?;

    let ranges = map::ranges(memory_bytes);
    for (index, range) in ranges.iter().enumerate() {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.bytes,
            type_: range.kind.number(),
            reserved: 0,
        };
        let at = layout::PVH_MEMORY_MAP + (index * size_of::<hvm_memmap_table_entry>()) as u64;
        memory.write_obj(entry, GuestAddress(at))?;
    }
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: source.rsdp,
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: ranges.len() as u32,
        ..Default::default()
    };
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry { paddr: initrd.address, size: initrd.bytes, ..Default::default() };
        memory.write_obj(module, GuestAddress(layout::PVH_MODULES))?;
        info.nr_modules = 1;
        info.modlist_paddr = layout::PVH_MODULES;
    }
    memory.write_obj(info, GuestAddress(layout::PVH_START_INFO))?;
    Ok(Entry::Pvh { address: entry.0 })
}
