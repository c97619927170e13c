//! Guest memory that another process has: it gives page by page what is touched, through a userfaultfd.
//!
//! ```text
//!   VMM process                                            handler process
//!     guest or device touches a missing page
//!       -> the thread sleeps in the kernel  -- fault -->   reads the page from wherever it is
//!       <- the thread goes on  <----- UFFDIO_COPY ------   puts it in place
//! ```
//!
//! Invariant: a missing page is never taken for a zero one. The VMM keeps the userfaultfd open, so that a handler that dies
//! leaves sleeping threads and no wrong memory; [`source`] notices and ends the machine. What the balloon gave back is
//! mapped over (`balloon::release`) and is the handler's no more.
//!
//! What is said at the beginning is in [`pinfold_vmm_api::page_fault`]; the system calls are those of userfaultfd(2) and
//! ioctl_userfaultfd(2).

pub mod descriptor;
pub mod server;
pub mod source;
#[cfg(test)]
mod tests;
