//! Sandbox specs.

use super::{WireError, excerpt};
use crate::api::v1 as wire;
use pinfold_domain::spec::{SandboxSpec, Source, defaults};
use pinfold_domain::{Millis, Resources};

/// What a caller may ask for: [`from_wire`], and a source alone says what image, kernel and resources are.
pub fn from_caller(spec: Option<wire::SandboxSpec>) -> Result<SandboxSpec, WireError> {
    let spec = spec.ok_or(WireError::Missing { field: "spec" })?;
    if !spec.template.is_empty() || !spec.snapshot_id.is_empty() {
        let why = "a template or a snapshot gives it: leave it out";
        let given = |field, value: &str| {
            let value = excerpt(value);
            if value.is_empty() { Ok(()) } else { Err(WireError::NotAllowed { field, value, why }) }
        };
        given("image", &spec.image)?;
        given("kernel", &spec.kernel)?;
        if spec.resources.is_some() {
            return Err(WireError::NotAllowed { field: "resources", value: String::new(), why });
        }
    }
    from_wire(Some(spec))
}

/// Fills in the defaults, then checks every published bound.
pub fn from_wire(spec: Option<wire::SandboxSpec>) -> Result<SandboxSpec, WireError> {
    let spec = spec.ok_or(WireError::Missing { field: "spec" })?;
    let source = source_from_wire(&spec)?;
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
        source,
    };
    checked.validate()?;
    Ok(checked)
}

fn source_from_wire(spec: &wire::SandboxSpec) -> Result<Source, WireError> {
    match (spec.template.as_str(), spec.snapshot_id.as_str()) {
        ("", "") => Ok(Source::Image),
        (template, "") => Ok(Source::Template(template.to_owned())),
        ("", snapshot) => Ok(Source::Snapshot(snapshot.parse()?)),
        (template, _) => {
            let why = "a sandbox has one source, and snapshot_id is given too";
            Err(WireError::NotAllowed { field: "template", value: excerpt(template), why })
        }
    }
}

/// A template as it was asked for; the name is in its request beside it.
pub fn template_from_wire(name: &str, spec: Option<wire::TemplateSpec>) -> Result<SandboxSpec, WireError> {
    let wire::TemplateSpec { image, kernel, resources, environment } = spec.unwrap_or_default();
    pinfold_domain::ids::check_name("name", name)?;
    let name = name.to_owned();
    from_wire(Some(wire::SandboxSpec { name, image, kernel, resources, environment, ..Default::default() }))
}

/// Every field is set, so that [`from_wire`] gives the same spec back.
pub fn to_wire(spec: &SandboxSpec) -> wire::SandboxSpec {
    let (template, snapshot_id) = match &spec.source {
        Source::Image => (String::new(), String::new()),
        Source::Template(name) => (name.clone(), String::new()),
        Source::Snapshot(id) => (String::new(), id.to_string()),
    };
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
        template,
        snapshot_id,
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
    fn a_source_survives_the_round_trip_and_stands_alone() {
        let id = "0190b3f0-5a00-7000-8000-000000000001".to_owned();
        let of = |template: &str, snapshot: &str| wire::SandboxSpec {
            template: template.to_owned(),
            snapshot_id: snapshot.to_owned(),
            ..Default::default()
        };
        for asked in [of("python", ""), of("", &id)] {
            let spec = from_caller(Some(asked)).unwrap();
            assert_ne!(spec.source, Source::Image);
            assert_eq!(from_wire(Some(to_wire(&spec))), Ok(spec));
        }
        let refused = |spec| from_caller(Some(spec)).unwrap_err().to_string();
        assert!(refused(of("python", &id)).contains("one source"));
        assert!(refused(of("No Name", "")).contains("template"));
        assert!(refused(of("", "7")).contains("snapshot_id"));
        let image = wire::SandboxSpec { image: "base".to_owned(), ..of("python", "") };
        assert_eq!(
            refused(image),
            "image \"base\" is not allowed: a template or a snapshot gives it: leave it out"
        );
        let sized = wire::SandboxSpec { resources: Some(Default::default()), ..of("", &id) };
        assert!(refused(sized).starts_with("resources"));
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
