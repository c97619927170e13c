//! From a spec to the limits of its VMM. Pure.

use crate::host::{CgroupLimits, IoLimit};
use pinfold_domain::SandboxSpec;
use pinfold_vmm_api::console::{HEADER_BYTES, RING_BYTES};
use std::path::Path;

const MIB: u64 = 1024 * 1024;
/// What a VMM may take beyond guest memory: its own heap and stacks, page tables of the guest, kernel objects.
pub const VMM_MEMORY_BYTES: u64 = 64 * MIB;
/// Threads of a VMM besides its vCPUs, and the jailer's two processes, with room for more.
const VMM_THREADS: u64 = 24;

/// Limits of the sandbox's cgroup. `disk` is its disk file.
pub fn cgroup_limits(spec: &SandboxSpec, disk: &Path) -> CgroupLimits {
    CgroupLimits {
        cpu_millis: spec.resources.cpu_millis,
        memory_bytes: spec.resources.memory_bytes.saturating_add(VMM_MEMORY_BYTES),
        pids: VMM_THREADS + u64::from(spec.vcpus()),
        io: spec
            .io_bytes_per_second
            .map(|bytes_per_second| IoLimit { file: disk.to_owned(), bytes_per_second }),
    }
}

/// Guest memory in whole MiB.
pub fn memory_mib(spec: &SandboxSpec) -> u64 {
    spec.resources.memory_bytes / MIB
}

/// RLIMIT_FSIZE: no file of the VMM is larger than its disk or its console ring. Guest memory counts too where it is a
/// file in memory.
pub fn file_size_bytes(spec: &SandboxSpec) -> u64 {
    spec.resources.disk_bytes.max(spec.resources.memory_bytes).max(HEADER_BYTES + RING_BYTES)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use pinfold_proto::api::v1 as api;
    use pinfold_proto::convert;

    pub fn spec() -> SandboxSpec {
        convert::spec::from_wire(Some(api::SandboxSpec::default())).unwrap()
    }

    #[test]
    fn limits_follow_the_spec() {
        let mut spec = spec();
        spec.resources.cpu_millis = 1500;
        spec.io_bytes_per_second = Some(5 * MIB);
        let limits = cgroup_limits(&spec, Path::new("/d"));
        assert_eq!(limits.cpu_millis, 1500);
        assert_eq!(limits.memory_bytes, 320 * MIB);
        assert_eq!(limits.pids, 26);
        assert_eq!(limits.io.unwrap().bytes_per_second, 5 * MIB);
        assert_eq!(memory_mib(&spec), 256);
        assert_eq!(file_size_bytes(&spec), 1024 * MIB);
        spec.resources.memory_bytes = 4096 * MIB;
        assert_eq!(file_size_bytes(&spec), 4096 * MIB);
    }
}
