//! Bounds of the wire that every side keeps.

/// Largest gRPC message. A data frame is at most [`FRAME_BYTES`]; the rest is room for lists.
pub const MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Largest piece of stdin, stdout, stderr or file content in one frame.
pub const FRAME_BYTES: usize = 64 * 1024;
/// Words of a command line.
pub const COMMAND_WORDS: usize = 4096;
/// All words of a command line together: below Linux's ARG_MAX of 128 KiB for one word.
pub const COMMAND_BYTES: usize = 120 * 1024;
/// Longest path: PATH_MAX less its NUL.
pub const PATH_BYTES: usize = 4095;
/// Longest user name: `LOGIN_NAME_MAX` is 256 with its NUL.
pub const USER_BYTES: usize = 255;
/// Rows or columns of a terminal (`unsigned short` in `struct winsize`).
pub const TERMINAL_CELLS: u32 = 65_535;
/// Frames that wait in one direction of one stream; the rest is held back by HTTP/2 flow control.
pub const STREAM_QUEUE_FRAMES: usize = 8;
/// Entries of a page.
pub const PAGE_SIZE: (u32, u32) = (100, 1000);
/// vsock port on which the guest's agent serves `pinfold.guest.v1`.
pub const GUEST_PORT: u32 = 1024;
/// vsock port of the host to which the guest's agent says Hello.
pub const HELLO_PORT: u32 = 1025;
