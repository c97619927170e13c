use super::*;

fn spec() -> SandboxSpec {
    SandboxSpec {
        name: String::new(),
        image: defaults::IMAGE.to_owned(),
        kernel: None,
        resources: defaults::RESOURCES,
        labels: BTreeMap::new(),
        environment: BTreeMap::new(),
        ttl: defaults::TTL,
        start_timeout: defaults::START_TIMEOUT,
        node_labels: BTreeMap::new(),
        io_bytes_per_second: None,
        source: Source::Image,
    }
}

fn error_of(change: impl FnOnce(&mut SandboxSpec)) -> String {
    let mut changed = spec();
    change(&mut changed);
    changed.validate().expect_err("the change breaks a bound").to_string()
}

#[test]
fn the_defaults_are_valid() {
    assert_eq!(spec().validate(), Ok(()));
}

#[test]
fn resources_outside_their_range_are_named_with_value_and_limit() {
    assert_eq!(error_of(|s| s.resources.cpu_millis = 0), "resources.cpu_millis is 0, outside 100 to 32000");
    // minus one, cast by a careless client
    let error = error_of(|s| s.resources.memory_bytes = u64::MAX);
    assert!(
        error.starts_with("resources.memory_bytes is 18446744073709551615, outside 100663296"),
        "{error}"
    );
    assert!(error_of(|s| s.resources.disk_bytes = 0).contains("disk_bytes"));
    assert!(error_of(|s| s.resources.pids = 1 << 40).contains("pids"));
    assert!(error_of(|s| s.ttl = Millis(0)).contains("ttl_seconds"));
    assert!(error_of(|s| s.start_timeout = Millis(u64::MAX)).contains("start_timeout_seconds"));
}

#[test]
fn names_and_labels_keep_to_their_alphabet_and_length() {
    assert!(error_of(|s| s.name = "A b".into()).contains("name"));
    assert!(error_of(|s| s.image = "../etc".into()).contains("image"));
    assert!(error_of(|s| s.image = String::new()).contains("image is empty"));
    assert!(error_of(|s| s.kernel = Some("a/b".into())).contains("kernel"));
    assert!(error_of(|s| drop(s.labels.insert("a b".into(), String::new()))).contains("labels: \"a b\""));
    assert!(error_of(|s| drop(s.labels.insert("k".into(), "v\n".into()))).contains("labels"));
    assert!(error_of(|s| drop(s.labels.insert("k".into(), "v".repeat(64)))).contains("63"));
    assert!(
        error_of(|s| s.labels = (0..33).map(|n| (n.to_string(), String::new())).collect()).contains("33")
    );
}

#[test]
fn environment_is_bounded_and_well_formed() {
    for name in ["", "1A", "A=B", "A B", "É"] {
        let error = error_of(|s| drop(s.environment.insert(name.into(), String::new())));
        assert!(error.starts_with("environment: "), "{error}");
    }
    assert!(error_of(|s| drop(s.environment.insert("A".into(), "a\0b".into()))).contains("NUL"));
    assert!(error_of(|s| drop(s.environment.insert("A".into(), "x".repeat(40_000)))).contains("32768"));
}

#[test]
fn a_fraction_of_a_cpu_gets_one_vcpu() {
    for (cpu_millis, vcpus) in [(100, 1), (1000, 1), (1001, 2), (32_000, 32)] {
        let mut changed = spec();
        changed.resources.cpu_millis = cpu_millis;
        assert_eq!(changed.vcpus(), vcpus);
    }
}
