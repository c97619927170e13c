//! Users of the guest, from the text of its `/etc/passwd` and `/etc/group`.
//!
//! A static binary cannot load the C library's name services, and the agent would not let the guest's libraries run in
//! PID 1. Formats: passwd(5), group(5).

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes of each file that are looked at.
const FILE_BYTES: u64 = 1 << 20;
/// Supplementary groups of one user; the kernel's own limit is 65,536.
const GROUPS: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// supplementary groups, the primary one among them
    pub groups: Vec<u32>,
    pub home: String,
    pub shell: String,
}

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("user {name:?} is not in the sandbox's /etc/passwd")]
    Unknown { name: String },
    #[error("cannot read the sandbox's {file}")]
    Read { file: &'static str, source: io::Error },
}

/// The user with this name or number; `""` is root. A number that is in no line of `/etc/passwd` is a user without a name,
/// whose group has the same number and whose home is `/`. Blocks on the disk.
pub fn find(root: &Path, wanted: &str) -> Result<User, UserError> {
    let wanted = if wanted.is_empty() { "root" } else { wanted };
    let passwd = read(root, "etc/passwd", "/etc/passwd")?;
    let mut user = in_passwd(&passwd, wanted).map_or_else(|| nameless(wanted), Ok)?;
    let group = read(root, "etc/group", "/etc/group")?;
    user.groups = groups_of(&group, &user);
    Ok(user)
}

fn in_passwd(passwd: &str, wanted: &str) -> Option<User> {
    let users = || passwd.lines().filter_map(parse_user);
    // a name may consist of digits, so names go first
    users().find(|user| user.name == wanted).or_else(|| {
        let uid: u32 = wanted.parse().ok()?;
        users().find(|user| user.uid == uid)
    })
}

/// `name:password:uid:gid:comment:home:shell`
fn parse_user(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let _comment = fields.next()?;
    let or =
        |field: Option<&str>, default: &str| field.filter(|f| !f.is_empty()).unwrap_or(default).to_owned();
    let (home, shell) = (or(fields.next(), "/"), or(fields.next(), "/bin/sh"));
    Some(User { name: name.to_owned(), uid, gid, groups: Vec::new(), home, shell })
}

fn nameless(wanted: &str) -> Result<User, UserError> {
    let root = |name: &str| User {
        name: name.to_owned(),
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        home: "/".to_owned(),
        shell: "/bin/sh".to_owned(),
    };
    match wanted.parse::<u32>() {
        // -1 means "leave it" to the calls that set a user
        Ok(uid) if uid != u32::MAX => Ok(User { uid, gid: uid, ..root(wanted) }),
        // an image without /etc/passwd has a root all the same
        _ if wanted == "root" => Ok(root(wanted)),
        _ => Err(UserError::Unknown { name: wanted.to_owned() }),
    }
}

/// `name:password:gid:member,member`
fn groups_of(group: &str, user: &User) -> Vec<u32> {
    let member_of = |line: &str| {
        let mut fields = line.split(':');
        let gid: u32 = fields.nth(2)?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == user.name).then_some(gid)
    };
    let mut groups = vec![user.gid];
    groups.extend(group.lines().filter_map(member_of).filter(|&gid| gid != user.gid));
    groups.truncate(GROUPS);
    groups
}

fn read(root: &Path, path: &str, file: &'static str) -> Result<String, UserError> {
    let open = || {
        // a FIFO in the place of the file must not hold the agent
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(root.join(path))?;
        if !opened.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut bytes = Vec::new();
        opened.take(FILE_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.map_err(|source| UserError::Read { file, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# remark\nbroken:x:one\n\
        dev:x:1000:1000:Dev,,,:/home/dev:/bin/zsh\n42:x:7:7::/seven:\nbare:x:5:6::: \n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:dev,other\ndev:x:1000:\ndocker:x:999:dev\nlast:x:1:deve\n";

    fn guest() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), PASSWD).unwrap();
        std::fs::write(root.path().join("etc/group"), GROUP).unwrap();
        root
    }

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        let root = guest();
        let dev = find(root.path(), "dev").unwrap();
        assert_eq!(
            (dev.uid, dev.gid, dev.home.as_str(), dev.shell.as_str()),
            (1000, 1000, "/home/dev", "/bin/zsh")
        );
        assert_eq!(dev.groups, [1000, 27, 999]);
        assert_eq!(find(root.path(), "1000").unwrap(), dev);
        assert_eq!(find(root.path(), "").unwrap().name, "root");
    }

    #[test]
    fn a_name_of_digits_goes_before_a_number() {
        assert_eq!(find(guest().path(), "42").unwrap().uid, 7);
    }

    #[test]
    fn an_unlisted_number_is_a_user_without_a_name() {
        let user = find(guest().path(), "4242").unwrap();
        assert_eq!((user.uid, user.gid, user.groups, user.home.as_str()), (4242, 4242, vec![4242], "/"));
        assert!(find(guest().path(), "4294967295").is_err());
    }

    #[test]
    fn an_unknown_name_is_named() {
        let error = find(guest().path(), "nobody-here").unwrap_err().to_string();
        assert!(error.contains("\"nobody-here\""), "{error}");
    }

    #[test]
    fn an_image_without_passwd_has_a_root() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(find(empty.path(), "root").unwrap().uid, 0);
        assert!(find(empty.path(), "dev").is_err());
    }

    #[test]
    fn a_fifo_in_the_place_of_passwd_does_not_hold_the_agent() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        nix::unistd::mkfifo(&root.path().join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(find(root.path(), "root"), Err(UserError::Read { .. })));
    }
}
