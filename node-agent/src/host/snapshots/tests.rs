//! What is on the disk, whole, half made and damaged.

use super::draft::Subject;
use super::*;
use crate::host::paths::StateDirectory;
use crate::sandbox::policy::tests::spec;
use pinfold_domain::SnapshotId;
use std::io::Write;

pub const ID: &str = "0190b3f0-5a00-7000-8000-00000000000a";

fn id() -> SnapshotId {
    ID.parse().unwrap()
}

pub fn subject(image: &Path) -> Subject {
    let mut spec = spec();
    spec.resources.memory_bytes = 96 << 20;
    spec.resources.disk_bytes = 16 << 20;
    let file = FileIdentity::of("base", image).unwrap();
    let made = Made { mmio_on_cmdline: false, balloon: true };
    let kernel = KernelIdentity {
        asked: None,
        file: file.clone(),
        initrd: None,
        cmdline: "quiet".into(),
        mmio_on_cmdline: false,
    };
    Subject { tenant: "default".into(), source: "a sandbox".into(), spec, image: file, kernel, made }
}

struct Bench {
    store: SnapshotStore,
    subject: Subject,
    directory: tempfile::TempDir,
}

fn bench() -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let key = SnapshotKey::generate().unwrap();
    let store = SnapshotStore::open(&state, "snapshots", &key).unwrap();
    let image = directory.path().join("rootfs.erofs");
    fs::write(&image, "image").unwrap();
    Bench { store, subject: subject(&image), directory }
}

impl Bench {
    /// As a VMM and a clone of the disk fill it.
    fn fill(&self, draft: &Draft) {
        let (mut state, memory) = draft.files().unwrap();
        state.write_all(b"state").unwrap();
        memory.set_len(96 << 20).unwrap();
        let disk = File::create_new(draft.disk()).unwrap();
        disk.set_len(16 << 20).unwrap();
    }

    fn publish(&self) -> Saved {
        let draft = self.store.draft(id()).unwrap();
        self.fill(&draft);
        draft.publish(&self.subject, || true).unwrap()
    }

    fn list(&self) -> Vec<(SnapshotId, Found)> {
        self.store.list().unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path().join("snapshots")).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }
}

#[test]
fn what_is_published_is_found_again_as_it_was() {
    let bench = bench();
    let saved = bench.publish();
    assert_eq!(bench.list(), [(id(), Found::Whole(Box::new(saved.clone())))]);
    assert_eq!((saved.manifest.memory_mib, saved.manifest.state_bytes), (96, 5));
    assert!(saved.data_bytes() < 1 << 20, "holes are not counted: {}", saved.data_bytes());
    assert_eq!(saved.working_set(), None);
    saved.new_working_set().unwrap().write_all(b"pages").unwrap();
    assert_eq!(saved.working_set(), None, "not before it is whole");
    saved.keep_working_set().unwrap();
    assert_eq!(fs::read(saved.working_set().unwrap()).unwrap(), b"pages");
    // a later one takes its place
    assert_eq!(bench.publish().working_set(), None);
    bench.store.remove(id()).unwrap();
    bench.store.remove(id()).unwrap();
    assert_eq!(bench.names(), [] as [&str; 0]);
}

#[test]
fn what_was_half_made_is_removed() {
    let bench = bench();
    let draft = bench.store.draft(id()).unwrap();
    bench.fill(&draft);
    drop(draft);
    assert_eq!(bench.names(), [] as [&str; 0], "a draft that is given up goes");
    // one that nobody waits for any more gets no name
    let draft = bench.store.draft(id()).unwrap();
    bench.fill(&draft);
    draft.publish(&bench.subject, || false).unwrap_err();
    assert_eq!(bench.names(), [] as [&str; 0]);
    // an agent that was killed leaves it
    fs::create_dir(bench.directory.path().join(format!("snapshots/{ID}.new"))).unwrap();
    assert_eq!(bench.list(), []);
    assert_eq!(bench.names(), [] as [&str; 0]);
    // a machine that lacks its memory is not published
    let draft = bench.store.draft(id()).unwrap();
    bench.fill(&draft);
    File::options()
        .write(true)
        .open(draft.disk().with_file_name("memory"))
        .unwrap()
        .set_len(5)
        .unwrap();
    let error = draft.publish(&bench.subject, || true).unwrap_err().sentence();
    assert!(error.contains("its memory: 5 bytes instead of 100663296"), "{error}");
    assert_eq!(bench.names(), [] as [&str; 0]);
}

#[test]
fn what_is_damaged_is_named_and_set_aside() {
    type Damage = fn(&Saved);
    let damages: [(&str, Damage); 5] = [
        ("state: 0 bytes", |saved| fs::write(saved.state(), "").unwrap()),
        ("memory: No such file", |saved| fs::remove_file(saved.memory()).unwrap()),
        ("disk: 3 bytes", |saved| fs::write(saved.disk(), "abc").unwrap()),
        ("manifest: ", |saved| fs::write(saved.state().with_file_name("manifest.json"), "{").unwrap()),
        ("format 7", |saved| {
            let path = saved.state().with_file_name("manifest.json");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replace("\"format\": 1", "\"format\": 7")).unwrap();
        }),
    ];
    for (expected, damage) in damages {
        let bench = bench();
        damage(&bench.publish());
        let [(_, Found::Damaged { why, bytes })] = &bench.list()[..] else {
            panic!("{expected}: it is used")
        };
        assert!(why.contains(expected) && *bytes > 0, "{why}, {bytes} bytes");
        assert_eq!(bench.names(), [format!("{ID}.damaged")]);
        // it stays known, and can be replaced or removed
        assert!(matches!(bench.list()[..], [(_, Found::Damaged { .. })]));
        bench.publish();
        assert!(matches!(bench.list()[..], [(_, Found::Whole(_))]), "{:?}", bench.names());
        bench.store.remove(id()).unwrap();
        assert_eq!(bench.names(), [] as [&str; 0]);
    }
}

#[test]
fn a_sandbox_of_another_size_or_image_does_not_fit() {
    let bench = bench();
    let saved = bench.publish();
    let Subject { spec, image, .. } = &bench.subject;
    saved.fits(spec, image).unwrap();
    let refused = |change: fn(&mut SandboxSpec)| {
        let mut other = spec.clone();
        change(&mut other);
        saved.fits(&other, image).unwrap_err().to_string()
    };
    assert!(refused(|spec| spec.resources.cpu_millis = 2000).contains("virtual CPUs is 1, 2"));
    assert!(refused(|spec| spec.resources.memory_bytes = 128 << 20).contains("memory in MiB is 96, 128"));
    assert!(refused(|spec| spec.resources.disk_bytes = 32 << 20).contains("disk"));
    // less of the same CPU is the cgroup's matter
    let slower = SandboxSpec {
        resources: pinfold_domain::Resources { cpu_millis: 500, ..spec.resources },
        ..spec.clone()
    };
    saved.fits(&slower, image).unwrap();
    fs::write(bench.directory.path().join("rootfs.erofs"), "another").unwrap();
    let replaced = FileIdentity::of("base", &bench.directory.path().join("rootfs.erofs")).unwrap();
    assert!(saved.fits(spec, &replaced).unwrap_err().to_string().contains("was replaced"));
}

/// An act that was given up may go on to the end of a system call, and drops its draft then.
#[test]
fn a_draft_that_was_given_up_leaves_the_next_one_alone() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("saved");
    let first = Draft::begin(target.clone(), false).unwrap();
    drop(first.files().unwrap());
    let second = Draft::begin(target, false).unwrap();
    drop(second.files().unwrap());
    drop(first);
    assert!(second.disk().with_file_name("memory").exists());
    drop(second);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
