//! Files that a caller gives: kernels, initramfs. And the tables that are made for any machine.

use super::devices::memory_file;
use crate::acpi::{self, MmioWindow};
use crate::boot::{self, Source};
use crate::layout;
use crate::memory::{self, GuestMemory};
use arbitrary::{Arbitrary, Unstructured};
use pinfold_vmm_api::config::limits;
use vm_memory::{Bytes, GuestAddress};

const MEMORY_BYTES: u64 = limits::MIN_MEMORY_MIB << 20;

/// The first byte says how the rest is dressed (as it is, with an ELF or a bzImage magic in its place) and, by its upper
/// bits, whether there is an initramfs and whether the kernel is mapped.
pub fn kernel(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let mut file = rest.to_vec();
    match first % 3 {
        1 => dress(&mut file, 0, b"\x7fELF\x02\x01\x01"),
        2 => {
            dress(&mut file, 0x1fe, &[0x55, 0xaa]);
            dress(&mut file, 0x202, b"HdrS");
        }
        _ => {}
    }
    let (kernel, initrd) = (memory_file(&file), memory_file(rest));
    let memory = memory::allocate(MEMORY_BYTES).expect("address space");
    let source = Source {
        kernel: &kernel,
        initrd: (first & 0x80 != 0).then_some(&initrd),
        command_line: "quiet",
        map_kernel: first & 0x40 != 0,
        rsdp: layout::ACPI_TABLES,
    };
    let _ = boot::load(&memory, MEMORY_BYTES, &source);
    unmap(memory);
}

/// A VMM keeps its guest's memory to its end, so nobody else ever unmaps it.
fn unmap(memory: GuestMemory) {
    let ranges = memory::host_ranges(&memory);
    drop(memory);
    for (start, end) in ranges {
        // SAFETY: the only owner of the mapping was just dropped.
        unsafe { libc::munmap(start as *mut libc::c_void, (end - start) as usize) };
    }
}

fn dress(file: &mut Vec<u8>, at: usize, magic: &[u8]) {
    file.resize(file.len().max(at + magic.len()), 0);
    file[at..at + magic.len()].copy_from_slice(magic);
}

#[derive(Debug, Arbitrary)]
struct Platform {
    vcpus: u32,
    windows: u8,
    lines: [u8; 8],
}

/// Every machine within the limits gets tables that a guest can walk.
pub fn acpi(data: &[u8]) {
    let Ok(platform) = Platform::arbitrary(&mut Unstructured::new(data)) else { return };
    let memory = memory::allocate(MEMORY_BYTES).expect("address space");
    let vcpus = platform.vcpus % limits::MAX_VCPUS + 1;
    let count = usize::from(platform.windows) % (layout::VIRTIO_LINES.len() + 1);
    let windows: Vec<MmioWindow> = (0..count)
        .map(|index| MmioWindow {
            address: layout::VIRTIO_MMIO_BASE + index as u64 * layout::VIRTIO_MMIO_SIZE,
            line: u32::from(platform.lines[index % 8] % 24),
        })
        .collect();
    let rsdp = acpi::write(&memory, vcpus, &windows).expect("tables fit");
    let signature: [u8; 8] = memory.read_obj(GuestAddress(rsdp)).expect("in memory");
    assert_eq!(&signature, b"RSD PTR ");
    unmap(memory);
}
