//! The real jailer as root, with a static probe in place of the VMM. What the probe is confined by is read from the
//! kernel's own view of it (`/proc/<pid>` of the host), not from what it says.
//!
//! Needs root and a cgroup v2 mount. In CI (`CI=true`) their absence is a failure; elsewhere the test says that it
//! was skipped.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::{self, Mode, SFlag};
use nix::unistd::mkfifo;
use pinfold_vmm_api::jail::{JailConfig, JailLimits, JailOutcome, PassedFd};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const UID: u32 = 123_456;
const GID: u32 = 123_457;

/// A jail directory, a cgroup and a probe; all removed at the end.
struct Bench {
    directory: tempfile::TempDir,
    cgroup: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Option<Self> {
        let root = nix::unistd::geteuid().is_root();
        let Some(mount) = cgroup2_mount().filter(|_| root) else {
            assert!(
                std::env::var_os("CI").is_none(),
                "this test needs root and cgroup v2, and CI must have them"
            );
            eprintln!("SKIPPED: {name} needs root and a cgroup v2 mount");
            return None;
        };
        let cgroup = mount.join(format!("pinfold-jailer-test-{name}-{}", std::process::id()));
        fs::create_dir(&cgroup).expect("a cgroup");
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("root")).expect("a root");
        Some(Self { directory, cgroup })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self, executable: &File, passed: &[(&File, i32)]) -> JailConfig {
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        JailConfig {
            id: "test".into(),
            root: text(&self.path("root").canonicalize().expect("a real path")),
            uid: UID,
            gid: GID,
            cgroup: text(&self.cgroup),
            limits: JailLimits { open_files: 32, file_size_bytes: 12_345_678 },
            executable: executable.as_raw_fd(),
            arguments: vec!["run".into(), "--config-fd".into(), "5".into()],
            passed: passed
                .iter()
                .map(|(file, target)| PassedFd { source: file.as_raw_fd(), target: *target })
                .collect(),
        }
    }

    /// Runs the jailer with these descriptors left open over its exec.
    fn run(&self, config: &JailConfig, inherited: &[&File]) -> Output {
        let mut text = tempfile::tempfile().expect("a file");
        text.write_all(&serde_json::to_vec(config).expect("JSON")).expect("write");
        for file in inherited.iter().copied().chain([&text]) {
            fcntl(file, FcntlArg::F_SETFD(FdFlag::empty())).expect("keep over exec");
        }
        Command::new(env!("CARGO_BIN_EXE_pinfold-jailer"))
            .args(["--config-fd", &text.as_raw_fd().to_string()])
            .env("SECRET_OF_THE_AGENT", "x")
            .stdin(Stdio::null())
            .output()
            .expect("the jailer runs")
    }

    fn probe(&self) -> File {
        let binary = self.path("probe");
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/probe.rs");
        let status = Command::new(rustc)
            .args([
                "--edition=2024",
                "-Ctarget-feature=+crt-static",
                "--target=x86_64-unknown-linux-gnu",
                "-o",
            ])
            .args([&binary, &source])
            .status()
            .expect("rustc runs");
        assert!(status.success(), "the probe compiles");
        File::open(binary).expect("the probe")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A process that was just ended may still be in the cgroup: the kernel has no event for "rmdir would work
        // now" that is simpler than trying, for at most two seconds.
        let deadline = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.cgroup).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    line.split(' ').nth(1).map(PathBuf::from)
}

fn outcome(output: &Output) -> JailOutcome {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    match outcome(output) {
        JailOutcome::Error(text) => text,
        JailOutcome::Pid(pid) => panic!("no error, but process {pid}"),
    }
}

fn field(text: &str, name: &str) -> String {
    let line = text.lines().find(|line| line.split(':').next() == Some(name) || line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line[name.len()..].trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The confinement of `pid`, read from the host's /proc.
fn the_kernel_says_so(pid: u32, proc: &Path) {
    let read = |name: &str| fs::read_to_string(proc.join(name)).expect(name);
    let status = read("status");
    assert_eq!(field(&status, "Uid"), format!("{UID} {UID} {UID} {UID}"));
    assert_eq!(field(&status, "Gid"), format!("{GID} {GID} {GID} {GID}"));
    assert_eq!(field(&status, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    assert_eq!(field(&status, "Umask"), "0077");
    assert_eq!(field(&status, "SigBlk"), "0000000000000000");
    let limits = read("limits");
    assert_eq!(field(&limits, "Max open files"), "32 32 files");
    assert_eq!(field(&limits, "Max file size"), "12345678 12345678 bytes");
    assert_eq!(field(&limits, "Max core file size"), "0 0 bytes");
    assert_eq!(field(&limits, "Max stack size"), "8388608 8388608 bytes");
    assert_eq!(field(&limits, "Max processes"), "64 64 processes");
    assert_eq!(field(&limits, "Max locked memory"), "1048576 1048576 bytes");
    assert_eq!(field(&limits, "Max msgqueue size"), "0 0 bytes");
    assert_eq!(field(&limits, "Max pending signals"), "1024 1024 signals");
    let spaces = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(spaces(read("uid_map")), format!("{UID} {UID} 1"));
    assert_eq!(spaces(read("gid_map")), format!("{GID} {GID} 1"));
    for namespace in ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).expect(namespace);
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    let mut fds: Vec<i32> = fs::read_dir(proc.join("fd"))
        .expect("descriptors")
        .map(|entry| entry.expect("an entry").file_name().to_str().expect("UTF-8").parse().expect("a number"))
        .collect();
    fds.sort_unstable();
    assert_eq!(fds, [0, 1, 2, 4], "3 was closed by the probe itself");
    for stream in 0..3 {
        let target = fs::metadata(proc.join(format!("fd/{stream}"))).expect("a stream").rdev();
        assert_eq!(target, fs::metadata("/dev/null").expect("null").rdev());
    }
    assert_eq!(read("mountinfo").lines().count(), 1, "{}", read("mountinfo"));
    let mount = read("mountinfo");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        let options = mount.split(' ').nth(5).expect("mount options");
        assert!(options.split(',').any(|given| given == option), "{option} in {options}");
    }
    assert_eq!(read("environ"), "");
}

#[test]
fn the_vmm_is_confined() {
    let Some(bench) = Bench::new("confined") else { return };
    let probe = bench.probe();
    symlink("/etc/passwd", bench.path("root/planted")).expect("a planted link");
    let (mut said, says) = std::io::pipe().expect("a pipe");
    let (hold, end) = std::io::pipe().expect("a pipe");
    let (says, hold) =
        (File::from(std::os::fd::OwnedFd::from(says)), File::from(std::os::fd::OwnedFd::from(hold)));
    let secret = tempfile::tempfile().expect("a file that is not passed");
    let config = bench.config(&probe, &[(&says, 3), (&hold, 4)]);
    let output = bench.run(&config, &[&probe, &says, &hold, &secret]);
    let JailOutcome::Pid(pid) = outcome(&output) else { panic!("{output:?}") };
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    drop((says, hold));

    // what it sees
    let mut text = String::new();
    said.read_to_string(&mut text).expect("the probe speaks");
    assert_eq!(field(&text, "arguments"), r#"["pinfold-vmm", "run", "--config-fd", "5"]"#);
    assert_eq!(field(&text, "environment"), "0");
    assert_eq!(field(&text, "pid"), "1");
    assert_eq!(field(&text, "root"), r#"["planted"]"#);
    assert_eq!(field(&text, "directory"), r#""/""#);
    assert_eq!(field(&text, "create"), format!("Err(Some({}))", libc::EROFS));
    assert_eq!(field(&text, "up"), format!("Err(Some({}))", libc::ENOENT));

    let proc = PathBuf::from(format!("/proc/{pid}"));
    the_kernel_says_so(pid, &proc);
    assert_eq!(fs::read_to_string(bench.cgroup.join("cgroup.procs")).expect("procs"), format!("{pid}\n"));

    // the host is as it was, and the process ends when it is told to
    assert!(bench.path("root/planted").is_symlink() && !bench.path("root/made").exists());
    drop(end);
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::read_to_string(proc.join("cmdline")).is_ok_and(|text| !text.is_empty()) {
        assert!(Instant::now() < deadline, "the probe does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs the probe to its end in the jail as it is now; what it said.
fn probed(bench: &Bench) -> String {
    let probe = bench.probe();
    let (mut said, says) = std::io::pipe().expect("a pipe");
    let says = File::from(std::os::fd::OwnedFd::from(says));
    let null = File::open("/dev/null").expect("null");
    let config = bench.config(&probe, &[(&says, 3), (&null, 4)]);
    let output = bench.run(&config, &[&probe, &says, &null]);
    assert!(matches!(outcome(&output), JailOutcome::Pid(_)), "{output:?}");
    drop(says);
    let mut text = String::new();
    said.read_to_string(&mut text).expect("the probe speaks");
    text
}

/// Whatever somebody has put into the jail's root beforehand: it leads nowhere.
#[test]
fn what_was_planted_in_the_jail_leads_nowhere() {
    let Some(bench) = Bench::new("planted") else { return };
    let root = bench.path("root");
    let secret = bench.path("secret");
    fs::write(&secret, "of the host").expect("a secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("root's alone");
    fs::hard_link(&secret, root.join("hard-link")).expect("a hard link");
    symlink("/etc/passwd", root.join("link-absolute")).expect("a link");
    symlink("../secret", root.join("link-relative")).expect("a link");
    symlink("/proc/self/root/etc/passwd", root.join("link-magic")).expect("a link");
    mkfifo(&root.join("fifo"), Mode::S_IRUSR).expect("a FIFO");
    let listener = UnixListener::bind(bench.path("service")).expect("a socket of the host");
    symlink("../service", root.join("link-socket")).expect("a link");
    let _own = UnixListener::bind(root.join("socket")).expect("a socket");
    let device = stat::makedev(1, 3);
    stat::mknod(&root.join("device"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), device)
        .expect("a device");
    fs::copy("/bin/true", root.join("setuid")).expect("a program");
    fs::set_permissions(root.join("setuid"), fs::Permissions::from_mode(0o4755)).expect("setuid");

    let text = probed(&bench);
    let refused = |what: &str, error: i32| {
        assert_eq!(field(&text, &format!("{what} ")), format!("Err(Some({error}))"), "{what}\n{text}");
    };
    refused("opened hard-link", libc::EACCES);
    for link in ["link-absolute", "link-relative", "link-magic", "link-socket"] {
        refused(&format!("opened {link}"), libc::ENOENT);
        refused(&format!("connected {link}"), libc::ENOENT);
    }
    refused("opened fifo", libc::EACCES);
    refused("opened socket", libc::ENXIO);
    // it belongs to root, and only its owner may connect
    refused("connected socket", libc::EACCES);
    refused("opened device", libc::EACCES);
    for entry in ["setuid", "hard-link", "link-absolute", "device"] {
        let run = field(&text, &format!("run {entry} "));
        assert!(run.starts_with("Err("), "{entry}: {run}");
    }
    listener.set_nonblocking(true).expect("a flag");
    assert!(listener.accept().is_err(), "somebody reached the host's service");
    assert_eq!(fs::read_to_string(&secret).expect("the secret"), "of the host");
}

/// Nor does what stands in the place of the root or the cgroup, and nothing waits for a writer.
#[test]
fn what_was_planted_in_place_of_the_jail_is_refused() {
    let Some(bench) = Bench::new("replaced") else { return };
    let executable = File::open("/bin/true").expect("a program");
    mkfifo(&bench.path("fifo"), Mode::S_IRUSR).expect("a FIFO");
    let _listener = UnixListener::bind(bench.path("socket")).expect("a socket");
    fs::write(bench.path("file"), "").expect("a file");
    for (planted, word) in
        [("fifo", "ENOTDIR"), ("socket", "ENOTDIR"), ("file", "ENOTDIR"), ("none", "ENOENT")]
    {
        let path = bench.path(planted).to_str().expect("UTF-8").to_owned();
        let mut config = bench.config(&executable, &[]);
        config.root = path.clone();
        let text = error(&bench.run(&config, &[&executable]));
        assert!(text.contains("open the jail's root") && text.contains(word), "{text}");
        let mut config = bench.config(&executable, &[]);
        config.cgroup = path;
        let text = error(&bench.run(&config, &[&executable]));
        assert!(text.contains("open the cgroup directory") && text.contains(word), "{text}");
    }
    let mut config = bench.config(&executable, &[]);
    config.root = format!("/proc/self/root{}", bench.path("root").to_str().expect("UTF-8"));
    let text = error(&bench.run(&config, &[&executable]));
    assert!(text.contains("open the jail's root") && text.contains("ELOOP"), "{text}");
    // a directory that has the file, and is no cgroup
    fs::create_dir(bench.path("cgroup")).expect("a directory");
    symlink(bench.cgroup.join("cgroup.procs"), bench.path("cgroup/cgroup.procs")).expect("a link");
    let mut config = bench.config(&executable, &[]);
    config.cgroup = bench.path("cgroup").to_str().expect("UTF-8").to_owned();
    let text = error(&bench.run(&config, &[&executable]));
    assert!(text.contains("not on a cgroup v2 file system"), "{text}");
}

#[test]
fn no_symbolic_link_is_followed() {
    let Some(bench) = Bench::new("links") else { return };
    let executable = File::open("/bin/true").expect("a program");
    symlink("/", bench.path("link")).expect("a link");

    let mut config = bench.config(&executable, &[]);
    config.root = bench.path("link").to_str().expect("UTF-8").into();
    let text = error(&bench.run(&config, &[&executable]));
    assert!(text.contains("open the jail's root") && text.contains("ELOOP"), "{text}");

    config.root = bench.path("link/etc").to_str().expect("UTF-8").into();
    let text = error(&bench.run(&config, &[&executable]));
    assert!(text.contains("open the jail's root") && text.contains("ELOOP"), "{text}");

    let mut config = bench.config(&executable, &[]);
    symlink(&bench.cgroup, bench.path("cgroup")).expect("a link");
    config.cgroup = bench.path("cgroup").to_str().expect("UTF-8").into();
    let text = error(&bench.run(&config, &[&executable]));
    assert!(text.contains("open the cgroup directory") && text.contains("ELOOP"), "{text}");
}

#[test]
fn a_failure_is_told_and_leaves_no_process() {
    let Some(bench) = Bench::new("failure") else { return };
    let text_file = tempfile::NamedTempFile::new().expect("a file");
    let not_a_program = File::open(text_file.path()).expect("the file");
    let text = error(&bench.run(&bench.config(&not_a_program, &[]), &[&not_a_program]));
    assert!(text.contains("execute the VMM") && text.contains("EACCES"), "{text}");

    let executable = File::open("/bin/true").expect("a program");
    let mut config = bench.config(&executable, &[]);
    config.passed = vec![PassedFd { source: 987, target: 3 }];
    let text = error(&bench.run(&config, &[&executable]));
    assert!(text.contains("move a passed descriptor") && text.contains("EBADF"), "{text}");

    let mut config = bench.config(&executable, &[]);
    config.cgroup = bench.path("root").canonicalize().expect("a path").to_str().expect("UTF-8").into();
    let text = error(&bench.run(&config, &[&executable]));
    assert!(text.contains("not on a cgroup v2 file system"), "{text}");

    assert_eq!(fs::read_to_string(bench.cgroup.join("cgroup.procs")).expect("procs"), "");
}
