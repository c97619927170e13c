//! Sandbox specs.

use super::WireError;
use crate::api::v1 as wire;
use pinfold_domain::spec::{SandboxSpec, defaults};
use pinfold_domain::{Millis, Resources};

/// Fills in the defaults, then checks every published bound.
pub fn from_wire(spec: Option<wire::SandboxSpec>) -> Result<SandboxSpec, WireError> {
    let spec = spec.ok_or(WireError::Missing { field: "spec" })?;
    let or_default = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
    let checked = SandboxSpec {
        name: spec.name,
        image: or_default(spec.image, defaults::IMAGE),
        kernel: Some(spec.kernel).filter(|kernel| !kernel.is_empty()),
        resources: spec.resources.map_or(defaults::RESOURCES, resources_from_wire),
        labels: spec.labels.into_iter().collect(),
        environment: spec.environment.into_iter().collect(),
        ttl: spec.ttl_seconds.map_or(defaults::TTL, Millis::from_secs),
        start_timeout: spec.start_timeout_seconds.map_or(defaults::START_TIMEOUT, Millis::from_secs),
        node_labels: spec.node_labels.into_iter().collect(),
        io_bytes_per_second: spec.io_bytes_per_second,
    };
    checked.validate()?;
    Ok(checked)
}

/// Every field is set, so that [`from_wire`] gives the same spec back.
pub fn to_wire(spec: &SandboxSpec) -> wire::SandboxSpec {
    wire::SandboxSpec {
        name: spec.name.clone(),
        image: spec.image.clone(),
        kernel: spec.kernel.clone().unwrap_or_default(),
        resources: Some(resources_to_wire(&spec.resources)),
        labels: spec.labels.clone().into_iter().collect(),
        environment: spec.environment.clone().into_iter().collect(),
        ttl_seconds: Some(spec.ttl.0 / 1000),
        start_timeout_seconds: Some(spec.start_timeout.0 / 1000),
        node_labels: spec.node_labels.clone().into_iter().collect(),
        io_bytes_per_second: spec.io_bytes_per_second,
    }
}

pub fn resources_from_wire(resources: wire::Resources) -> Resources {
    let wire::Resources { cpu_millis, memory_bytes, disk_bytes, pids } = resources;
    Resources { cpu_millis, memory_bytes, disk_bytes, pids }
}

pub fn resources_to_wire(resources: &Resources) -> wire::Resources {
    let Resources { cpu_millis, memory_bytes, disk_bytes, pids } = *resources;
    wire::Resources { cpu_millis, memory_bytes, disk_bytes, pids }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_spec_takes_the_defaults_and_survives_the_round_trip() {
        let spec = from_wire(Some(wire::SandboxSpec::default())).unwrap();
        assert_eq!(spec.image, defaults::IMAGE);
        assert_eq!(spec.resources, defaults::RESOURCES);
        assert_eq!(from_wire(Some(to_wire(&spec))), Ok(spec));
    }

    #[test]
    fn given_resources_get_no_defaults() {
        let resources = Some(wire::Resources { cpu_millis: 1000, ..Default::default() });
        let error = from_wire(Some(wire::SandboxSpec { resources, ..Default::default() })).unwrap_err();
        assert!(error.to_string().starts_with("resources.memory_bytes is 0, outside"), "{error}");
    }

    #[test]
    fn a_huge_ttl_is_refused_and_does_not_overflow() {
        let spec = wire::SandboxSpec { ttl_seconds: Some(u64::MAX), ..Default::default() };
        assert!(from_wire(Some(spec)).unwrap_err().to_string().contains("ttl_seconds"));
        assert_eq!(from_wire(None), Err(WireError::Missing { field: "spec" }));
    }
}
