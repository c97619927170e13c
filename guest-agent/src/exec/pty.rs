//! Pseudo-terminals: pty(7), ioctl_tty(2).

use super::channel::Channel;
use super::users::User;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::unistd::{Gid, Uid, fchown};
use pinfold_proto::guest::v1::TerminalSize;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Group `tty`, which may write to terminals. Its number is the same in every distribution.
const TTY_GROUP: u32 = 5;

/// The agent's end and the process's end of a new terminal that belongs to `user`.
pub fn open(size: &TerminalSize, user: &User) -> io::Result<(Channel, OwnedFd)> {
    let pty = openpty(Some(&window(size)), None)?;
    // between openpty and here no process is made: forks happen on this thread alone
    for fd in [&pty.master, &pty.slave] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    if Uid::effective().is_root() {
        fchown(&pty.slave, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(TTY_GROUP)))?;
    }
    Ok((Channel::new(pty.master)?, pty.slave))
}

/// Sets the size; the kernel sends SIGWINCH to the foreground process group.
pub fn resize(terminal: &impl AsFd, size: &TerminalSize) -> io::Result<()> {
    let window = window(size);
    // SAFETY: the descriptor is open, and TIOCSWINSZ reads one winsize, which `window` is.
    let done = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const window) };
    Errno::result(done).map(drop).map_err(io::Error::from)
}

/// Leader of the process group in the foreground; none while there is none.
pub fn foreground(terminal: &impl AsFd) -> Option<libc::pid_t> {
    nix::unistd::tcgetpgrp(terminal).ok().map(nix::unistd::Pid::as_raw).filter(|&pid| pid > 1)
}

// sizes are checked to fit where they come in
fn window(size: &TerminalSize) -> Winsize {
    let cells = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    Winsize { ws_row: cells(size.rows), ws_col: cells(size.columns), ws_xpixel: 0, ws_ypixel: 0 }
}
