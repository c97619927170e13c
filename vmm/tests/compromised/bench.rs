//! What the attempts are made against: programs, a directory and services of the host, a victim.

use std::fs::{self, File, Permissions};
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Of every VMM here, jailed or not.
pub const UID: u32 = 123_460;

/// One line of `compromised list`.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub name: String,
    pub what: String,
    pub uid: bool,
    pub landlock: Option<u32>,
    pub jail: bool,
    pub seccomp: bool,
}

impl Attempt {
    fn parse(line: &str) -> Self {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, what, uid, landlock, jail, seccomp] = fields[..] else { panic!("{line:?}") };
        Self {
            name: name.to_owned(),
            what: what.to_owned(),
            uid: uid == "true",
            landlock: landlock.parse().ok(),
            jail: jail == "true",
            seccomp: seccomp == "true",
        }
    }

    /// As the document shows it.
    pub fn row(&self) -> String {
        let yes = |yes: bool| if yes { "yes" } else { "" };
        let landlock = self.landlock.map_or(String::new(), |version| version.to_string());
        let cells = [yes(self.uid), yes(self.jail), &landlock, yes(self.seccomp)];
        format!("| `{}` | {} | {} |", self.name, self.what, cells.join(" | ")).replace("  ", " ")
    }
}

pub struct Bench {
    pub attempts: Vec<Attempt>,
    pub directory: tempfile::TempDir,
    pub cgroup: PathBuf,
    pub programs: PathBuf,
    pub victim: Child,
    pub tcp: TcpListener,
    pub abstract_name: String,
    _udp: UdpSocket,
    _services: [UnixListener; 2],
}

impl Bench {
    pub fn new(name: &str) -> Option<Self> {
        let mount = requirements()?;
        let programs = programs();
        let cgroup = mount.join(format!("pinfold-compromised-{name}-{}", std::process::id()));
        fs::create_dir(&cgroup).expect("a cgroup");
        let directory = tempfile::tempdir().expect("a directory");
        open_to_all(directory.path());
        fs::create_dir(directory.path().join("root")).expect("a root");
        // a copy: the build directory may be closed to other users
        let program = directory.path().join("compromised");
        fs::copy(programs.join("compromised"), &program).expect("the program");
        open_to_all(&program);
        nix::sys::prctl::set_child_subreaper(true).expect("the parent of what the jailer leaves");
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = tcp.local_addr().expect("its address").port();
        let abstract_name = format!("pinfold-compromised-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).expect("a name");
        let service = UnixListener::bind(directory.path().join("service")).expect("a socket");
        open_to_all(&directory.path().join("service"));
        Some(Self {
            attempts: list(&programs),
            victim: Command::new("sleep").arg("3600").uid(UID).gid(UID).spawn().expect("a victim"),
            tcp,
            _udp: UdpSocket::bind(("127.0.0.1", port)).expect("a UDP port"),
            _services: [service, UnixListener::bind_addr(&address).expect("an abstract socket")],
            abstract_name,
            directory,
            cgroup,
            programs,
        })
    }

    /// A directory of the host for one attempt, as [`crate::launch`] tells the program.
    pub fn outside(&self, name: &str) -> PathBuf {
        let outside = self.directory.path().join(name);
        fs::create_dir(&outside).expect("a directory");
        open_to_all(&outside);
        for (file, mode) in [("file", 0o666), ("own", 0o644)] {
            fs::write(outside.join(file), "of the host").expect("a file");
            fs::set_permissions(outside.join(file), Permissions::from_mode(mode)).expect("its mode");
        }
        chown(outside.join("own"), Some(UID), Some(UID)).expect("an owner");
        symlink(outside.join("file"), outside.join("link")).expect("a link");
        symlink(self.directory.path().join("compromised"), outside.join("program")).expect("a link");
        fs::hard_link(self.directory.path().join("service"), outside.join("service")).expect("the service");
        outside
    }

    pub fn landlock_version(&self) -> u32 {
        // SAFETY: LANDLOCK_CREATE_RULESET_VERSION asks for a number and takes nothing.
        let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
        u32::try_from(version).unwrap_or(0)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
        // what has just ended may still be in the cgroup: there is nothing simpler to wait for than the removal
        let deadline = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.cgroup).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What the program says it can try.
pub fn list(programs: &Path) -> Vec<Attempt> {
    let output = Command::new(programs.join("compromised")).arg("list").output().expect("the program runs");
    String::from_utf8(output.stdout).expect("UTF-8").lines().map(Attempt::parse).collect()
}

/// The cgroup v2 mount, if everything is there.
fn requirements() -> Option<PathBuf> {
    let mount = cgroup2_mount();
    let missing = if !nix::unistd::geteuid().is_root() {
        "root"
    } else if mount.is_none() {
        "a cgroup v2 mount"
    } else if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        "/dev/kvm"
    } else {
        return mount;
    };
    assert!(std::env::var_os("CI").is_none(), "this test needs {missing}, and CI must have it");
    eprintln!("SKIPPED: this test needs {missing}");
    None
}

fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    line.split(' ').nth(1).map(PathBuf::from)
}

/// The directory with the compromised VMM and the jailer.
pub fn programs() -> PathBuf {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    if let Some(given) = std::env::var_os("PINFOLD_COMPROMISED_PROGRAMS") {
        return given.into();
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned();
    let target = std::env::current_exe().expect("this program");
    // target/<profile>/deps/<this program>
    let target = target.ancestors().nth(3).expect("the target directory").to_owned();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(workspace)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--target",
            TARGET,
            "-p",
            "pinfold-vmm",
            "-p",
            "pinfold-jailer",
        ])
        .args(["--bin", "pinfold-jailer", "--example", "compromised", "--target-dir"])
        .arg(&target)
        // the jail has no library to load
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the programs are built");
    let built = target.join(TARGET).join("debug");
    let both = target.join("compromised-programs");
    fs::create_dir_all(&both).expect("a directory");
    for (from, name) in [("examples/compromised", "compromised"), ("pinfold-jailer", "pinfold-jailer")] {
        // several tests do this at once: whoever is last wins with the same content
        let new = both.join(format!("{name}.{}", std::process::id()));
        fs::copy(built.join(from), &new).expect("a program");
        fs::rename(new, both.join(name)).expect("in its place");
    }
    both
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o777)).expect("a mode");
}
