//! From kernel, initramfs and command line to the state in which the first vCPU starts.
//!
//! Two ways in: a bzImage by the 64-bit entry of the Linux/x86 boot protocol, an ELF image by its PVH note.

mod bzimage;
mod image;
mod map;
mod pvh;

use crate::layout;
use crate::memory::GuestMemory;
use image::Image;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use vm_memory::{Bytes, GuestAddress};

/// How the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// long mode, RSI holds the address of the zero page (Linux/x86 boot protocol, 64-bit)
    Linux64 { address: u64 },
    /// 32-bit protected mode without paging, EBX holds the address of `hvm_start_info`
    Pvh { address: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Initrd {
    pub address: u64,
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("the kernel cannot be read: {0}")]
    ReadKernel(io::Error),
    #[error("the kernel is neither a bzImage nor an ELF image with a PVH note: {0}")]
    NotAKernel(String),
    #[error("the kernel needs memory up to {needed:#x}, the guest's low memory ends at {end:#x}")]
    KernelTooLarge { needed: u64, end: u64 },
    #[error("the initramfs cannot be read: {0}")]
    ReadInitrd(io::Error),
    #[error("the initramfs has {bytes} bytes, between kernel and end of low memory are {room}")]
    InitrdTooLarge { bytes: u64, room: u64 },
    #[error("the command line has {bytes} bytes, this kernel takes {max}")]
    CommandLineTooLong { bytes: usize, max: u32 },
    #[error("boot data cannot be written to guest memory: {0}")]
    Write(#[from] vm_memory::GuestMemoryError),
}

impl BootError {
    /// True when it is the initramfs that is at fault.
    pub fn is_initrd(&self) -> bool {
        matches!(self, Self::ReadInitrd(_) | Self::InitrdTooLarge { .. })
    }
}

/// What to boot.
#[derive(Debug)]
pub struct Source<'a> {
    pub kernel: &'a File,
    pub initrd: Option<&'a File>,
    pub command_line: &'a str,
    /// Map an ELF kernel over guest memory instead of copying it. Only for private anonymous memory in small pages.
    pub map_kernel: bool,
    /// address of the ACPI RSDP
    pub rsdp: u64,
}

/// Loads everything into `memory` of `memory_bytes` and says how to start.
pub fn load(memory: &GuestMemory, memory_bytes: u64, source: &Source<'_>) -> Result<Entry, BootError> {
    let mut kernel = Image::new(source.kernel).map_err(BootError::ReadKernel)?;
    let mut magic = [0; 4];
    kernel.read_exact(&mut magic).map_err(|_| BootError::NotAKernel("it is shorter than 4 bytes".into()))?;
    kernel.seek(SeekFrom::Start(0)).map_err(BootError::ReadKernel)?;
    if &magic == b"\x7fELF" {
        pvh::load(memory, memory_bytes, kernel, source)
    } else {
        bzimage::load(memory, memory_bytes, kernel, source)
    }
}

/// End of RAM below the hole.
fn low_end(memory_bytes: u64) -> u64 {
    memory_bytes.min(layout::HOLE_START)
}

/// Writes the command line with its terminating NUL.
fn write_command_line(memory: &GuestMemory, text: &str, max: u32) -> Result<(), BootError> {
    if text.len() > max as usize {
        return Err(BootError::CommandLineTooLong { bytes: text.len(), max });
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    memory.write_slice(&bytes, GuestAddress(layout::COMMAND_LINE))?;
    Ok(())
}

/// Puts the initramfs as high as it may be, below `limit`, above `floor`.
fn load_initrd(
    memory: &GuestMemory,
    file: Option<&File>,
    floor: u64,
    limit: u64,
) -> Result<Option<Initrd>, BootError> {
    let Some(file) = file else { return Ok(None) };
    let image = Image::new(file).map_err(BootError::ReadInitrd)?;
    let bytes = image.length_bytes();
    if bytes == 0 {
        return Err(BootError::ReadInitrd(io::Error::new(io::ErrorKind::UnexpectedEof, "it is empty")));
    }
    let too_large = BootError::InitrdTooLarge { bytes, room: limit.saturating_sub(floor) };
    let address = limit.checked_sub(bytes).map(|start| start & !0xfff);
    let Some(address) = address.filter(|start| *start >= floor) else { return Err(too_large) };
    image.copy_to(memory, 0, bytes, GuestAddress(address)).map_err(BootError::ReadInitrd)?;
    Ok(Some(Initrd { address, bytes }))
}

#[cfg(test)]
mod tests;
