//! What the VMM gives up by itself, before it reads anything that a guest had a hand in.
//!
//! The jailer has taken the host's namespaces, ids and capabilities away, and the seccomp filters come with the threads.
//! In between stands Landlock: **no path can be opened, made, run or mounted**, whatever the root holds and whoever owns
//! it. It is inherited by every thread that is started later and can never be taken back.
//!
//! Landlock is as strict as the host's kernel can: what is in force is told in
//! [`pinfold_vmm_api::control::Status`], so that a node can show it.

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use pinfold_vmm_api::Vsock;
use pinfold_vmm_api::control::Confinement;
use std::io;
use std::path::Path;

/// The newest version whose rights this file was written against.
const ABI_KNOWN: ABI = ABI::V10;

#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    #[error("the process cannot be made undumpable")]
    Undumpable(#[source] io::Error),
    #[error("Landlock cannot be put in force")]
    Landlock(#[from] RulesetError),
}

/// Keeps other processes of the same uid, and core files, away from the memory of this one. The exec has made it
/// dumpable again, so the jailer cannot do this.
pub fn forbid_dumps() -> Result<(), ConfinementError> {
    // SAFETY: PR_SET_DUMPABLE takes one number.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(ConfinementError::Undumpable(io::Error::last_os_error())),
    }
}

/// Takes the file system, TCP and UDP, abstract sockets and signals to other processes away from the calling thread and
/// those that it will start. The version that is in force, or `None` where the kernel has no Landlock.
///
/// What stays is a connection to the sockets that stand for ports of the host. Before version 9 Landlock has no say in
/// connections to named sockets: there the jail's root, which holds no other socket, is what limits them.
pub fn forbid_paths(vsock: Option<&Vsock>) -> Result<Option<u32>, ConfinementError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_KNOWN))?
        .handle_access(AccessNet::from_all(ABI_KNOWN))?
        .scope(Scope::from_all(ABI_KNOWN))?
        .create()?;
    let directory = vsock.and_then(|vsock| Path::new(&vsock.guest_connect_prefix).parent());
    // a directory that is not there has no sockets: connecting will say so
    if let Some(Ok(directory)) = directory.map(PathFd::new) {
        rules = rules.add_rule(PathBeneath::new(directory, AccessFs::ResolveUnix))?;
    }
    let status = rules.restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => None,
        (_, LandlockStatus::Available { effective_abi, .. }) => Some(effective_abi as u32),
        _ => None,
    })
}

/// In the words of the control protocol.
pub fn told(landlock_version: Option<u32>, with_seccomp: bool) -> Confinement {
    Confinement { landlock_version, seccomp: with_seccomp }
}
