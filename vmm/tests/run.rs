//! `pinfold-vmm run` from outside: what a caller sees of configs and descriptors that cannot be used. No KVM is needed.

use pinfold_vmm_api::control::{ExitReason, ExitRecord};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

/// Descriptors of a machine whose `/dev/kvm` is `/dev/null`, and the config that names them.
struct Machine {
    directory: tempfile::TempDir,
    open: Vec<OwnedFd>,
    config: Value,
    exit: File,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let exit = tempfile::tempfile().expect("a temporary file");
        let mut machine = Self { directory, open: Vec::new(), config: Value::Null, exit };
        let kernel = machine.pass(tempfile::tempfile().expect("a temporary file"));
        let kvm = machine.pass(OpenOptions::new().read(true).write(true).open("/dev/null").expect("null"));
        let control =
            machine.pass(UnixListener::bind(machine.directory.path().join("control")).expect("bound"));
        let console = machine.pass(tempfile::tempfile().expect("a temporary file"));
        let exit = machine.pass(machine.exit.try_clone().expect("a second descriptor"));
        machine.config = json!({
            "id": "test", "vcpus": 1, "memory_mib": 128, "kernel": kernel, "initrd": null, "cmdline": "quiet",
            "disks": [], "vsock": null, "kvm": kvm, "control": control, "console": console, "exit": exit,
        });
        machine
    }

    /// Makes a descriptor one that the VMM inherits.
    fn pass(&mut self, file: impl Into<OwnedFd>) -> RawFd {
        let fd: OwnedFd = file.into();
        // SAFETY: clears FD_CLOEXEC of an open descriptor.
        assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) }, 0);
        self.open.push(fd);
        self.open[self.open.len() - 1].as_raw_fd()
    }

    fn run(&mut self) -> Output {
        let text = self.config.to_string();
        self.run_with(text.as_bytes())
    }

    fn run_with(&mut self, config: &[u8]) -> Output {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(config).expect("written");
        file.seek(SeekFrom::Start(0)).expect("seek");
        let number = self.pass(file).to_string();
        let vmm = env!("CARGO_BIN_EXE_pinfold-vmm");
        Command::new(vmm).args(["run", "--config-fd", &number]).output().expect("started")
    }

    fn record(&mut self) -> Option<ExitRecord> {
        let mut text = String::new();
        self.exit.seek(SeekFrom::Start(0)).expect("seek");
        self.exit.read_to_string(&mut text).expect("read");
        (!text.is_empty()).then(|| serde_json::from_str(&text).expect("an exit record"))
    }
}

#[test]
fn a_config_outside_its_bounds_is_recorded_with_field_value_and_limit() {
    let cases = [
        ("vcpus", json!(0), "vcpus is 0, outside 1 to 32"),
        ("vcpus", json!(33), "vcpus is 33, outside 1 to 32"),
        ("memory_mib", json!(1), "memory_mib is 1, outside 96 to 262144"),
        ("cmdline", json!("x".repeat(2001)), "cmdline is 2001 bytes long, the limit is 2000"),
        ("cmdline", json!("a\nb"), "cmdline holds a byte outside printable ASCII"),
    ];
    for (field, value, message) in cases {
        let mut machine = Machine::new();
        machine.config[field] = value;
        let output = machine.run();
        assert_eq!(output.status.code(), Some(0), "the record says it all");
        let record = machine.record().expect("a record");
        assert_eq!(record.reason, ExitReason::BadConfig);
        assert!(record.message.contains(message), "{}", record.message);
    }
}

#[test]
fn a_config_that_is_none_has_no_exit_file_to_write_to() {
    let good = Machine::new().config;
    let mut unknown = good.clone();
    unknown["surprise"] = json!(1);
    let mut missing = good.clone();
    missing.as_object_mut().expect("an object").remove("kvm");
    let texts = ["", "{", "[]", "\u{0}", &unknown.to_string(), &missing.to_string()].map(str::to_owned);
    for text in texts {
        let mut machine = Machine::new();
        let output = machine.run_with(text.as_bytes());
        assert_eq!(output.status.code(), Some(2), "{text:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("the config is not one"), "{output:?}");
        assert_eq!(machine.record(), None);
    }
}

#[test]
fn a_config_past_its_limit_is_refused_and_not_cut() {
    let mut machine = Machine::new();
    let mut text = machine.config.to_string();
    // valid as far as the limit goes
    text.push_str(&" ".repeat(64 * 1024));
    let output = machine.run_with(text.as_bytes());
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("the config takes more than 65536 bytes"), "{message}");
}

#[test]
fn descriptors_are_open_and_given_once() {
    let closed = 999;
    for field in ["kernel", "initrd", "kvm", "control", "console"] {
        let mut machine = Machine::new();
        machine.config[field] = json!(closed);
        machine.run();
        let record = machine.record().expect("a record");
        assert_eq!(record.reason, ExitReason::BadConfig, "{field}");
        assert!(record.message.contains("descriptor 999"), "{}", record.message);
    }
    let mut machine = Machine::new();
    let twice = machine.config["console"].clone();
    machine.config["control"] = twice;
    machine.run();
    assert_eq!(machine.record().expect("a record").reason, ExitReason::BadConfig);
    let mut machine = Machine::new();
    machine.config["kernel"] = json!(0);
    machine.run();
    assert_eq!(machine.record().expect("a record").reason, ExitReason::BadConfig);
}

#[test]
fn a_descriptor_that_is_not_kvm_is_found_out() {
    let mut machine = Machine::new();
    machine.run();
    let record = machine.record().expect("a record");
    assert_eq!(record.reason, ExitReason::Kvm);
    assert!(record.message.contains("API version"), "{}", record.message);
}

#[test]
fn a_probe_answers_in_json_whatever_it_finds() {
    let vmm = env!("CARGO_BIN_EXE_pinfold-vmm");
    let output = Command::new(vmm).args(["probe", "--kvm", "/nonexistent"]).output().expect("started");
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["verdict"], "unusable");
    assert!(report["sentence"].as_str().is_some_and(|sentence| sentence.ends_with('.')));
    let checks = report["checks"].as_array().expect("checks");
    assert!(checks.iter().any(|check| check["name"] == "device" && check["ok"] == false));
}

#[test]
fn a_command_line_that_is_none_is_refused_by_name() {
    let vmm = env!("CARGO_BIN_EXE_pinfold-vmm");
    let cases: [(&[&str], &str); 7] = [
        (&[], "no command given"),
        (&["fly"], "\"fly\" is no command"),
        (&["--fly"], "--fly"),
        (&["run"], "run needs --config-fd"),
        (&["run", "--config-fd"], "--config-fd"),
        (&["run", "--config-fd", "three"], "three"),
        (&["run", "--config-fd", "2"], "--config-fd is 2, it must be 3 or more"),
    ];
    for (arguments, message) in cases {
        let output = Command::new(vmm).args(arguments).output().expect("started");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(message), "{arguments:?}: {said}");
    }
    for (argument, text) in [("--help", "--config-fd N"), ("--version", env!("CARGO_PKG_VERSION"))] {
        let output = Command::new(vmm).arg(argument).output().expect("started");
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains(text));
    }
}

#[test]
fn the_rules_of_every_thread_are_listed_with_a_reason() {
    let vmm = env!("CARGO_BIN_EXE_pinfold-vmm");
    let output = Command::new(vmm).arg("rules").output().expect("started");
    assert_eq!(output.status.code(), Some(0));
    let rules: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    for thread in ["devices", "vcpu", "worker", "pages"] {
        let of_thread: Vec<_> = rules.iter().filter(|rule| rule["thread"] == thread).collect();
        assert!(of_thread.len() > 10, "{thread}");
        assert!(of_thread.iter().all(|rule| rule["why"].as_str().is_some_and(|why| !why.is_empty())));
    }
}
