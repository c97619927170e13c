//! Images and kernels as directories. Nothing is cached: an image that is put there later is found.
//!
//! ```text
//!   <images_dir>/<image>/rootfs.erofs
//!   <images_dir>/kernels/<kernel>/kernel.json    {"name", "version", "file", "initrd", "cmdline", "mmio_on_cmdline"}
//!   <images_dir>/default-kernel                  name of a kernel
//! ```
//!
//! Names were checked as DNS labels before they come here, and are checked once more: they become parts of a path.

use super::{ImageError, Images, Kernel};
use pinfold_domain::ids::check_name;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT_IMAGE: &str = "rootfs.erofs";
const KERNELS: &str = "kernels";

#[derive(Debug, Clone)]
pub struct ImageDirectory {
    root: PathBuf,
}

/// `kernel.json`. Other fields are for people.
#[derive(Debug, Deserialize)]
struct KernelFile {
    file: String,
    #[serde(default)]
    initrd: Option<String>,
    #[serde(default)]
    cmdline: String,
    #[serde(default)]
    mmio_on_cmdline: bool,
}

impl ImageDirectory {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn kernel_directory(&self, name: &str) -> PathBuf {
        self.root.join(KERNELS).join(name)
    }

    fn default_kernel(&self) -> Result<String, ImageError> {
        let path = self.root.join("default-kernel");
        let text = fs::read_to_string(&path).map_err(|error| ImageError::Unusable {
            kind: "kernel",
            name: "default".to_owned(),
            why: format!("{}: {error}", path.display()),
        })?;
        Ok(text.trim().to_owned())
    }
}

impl Images for ImageDirectory {
    fn images(&self) -> BTreeSet<String> {
        directories_with(&self.root, ROOT_IMAGE)
    }

    fn kernels(&self) -> BTreeSet<String> {
        directories_with(&self.root.join(KERNELS), "kernel.json")
    }

    fn root_image(&self, name: &str) -> Result<PathBuf, ImageError> {
        let path = self.root.join(name).join(ROOT_IMAGE);
        if check_name("image", name).is_err() || !path.is_file() {
            return Err(unknown("image", name, &self.images()));
        }
        Ok(path)
    }

    fn kernel(&self, name: Option<&str>) -> Result<Kernel, ImageError> {
        let name = name.map_or_else(|| self.default_kernel(), |name| Ok(name.to_owned()))?;
        let directory = self.kernel_directory(&name);
        let description = directory.join("kernel.json");
        if check_name("kernel", &name).is_err() || !description.is_file() {
            return Err(unknown("kernel", &name, &self.kernels()));
        }
        let unusable = |why: String| ImageError::Unusable { kind: "kernel", name: name.clone(), why };
        let text = fs::read(&description).map_err(|error| unusable(format!("kernel.json: {error}")))?;
        let parsed: KernelFile =
            serde_json::from_slice(&text).map_err(|error| unusable(format!("kernel.json: {error}")))?;
        let beside = |file: &str| {
            if file.is_empty() || file.contains('/') || file.starts_with('.') {
                return Err(unusable(format!("kernel.json names the file {file:?}, it must be beside it")));
            }
            Ok(directory.join(file))
        };
        Ok(Kernel {
            file: beside(&parsed.file)?,
            initrd: parsed.initrd.as_deref().filter(|file| !file.is_empty()).map(beside).transpose()?,
            cmdline: parsed.cmdline,
            mmio_on_cmdline: parsed.mmio_on_cmdline,
            name,
        })
    }
}

fn unknown(kind: &'static str, name: &str, have: &BTreeSet<String>) -> ImageError {
    let have = have.iter().cloned().collect::<Vec<_>>().join(", ");
    ImageError::Unknown { kind, name: name.chars().take(80).collect(), have }
}

/// Names of the directories below `root` that hold `file`. A root that cannot be read holds none.
fn directories_with(root: &Path, file: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().join(file).is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| check_name("name", name).is_ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, ImageDirectory) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("base")).unwrap();
        fs::write(root.join("base/rootfs.erofs"), "x").unwrap();
        fs::create_dir_all(root.join("empty")).unwrap();
        fs::create_dir_all(root.join("kernels/stock")).unwrap();
        let json =
            r#"{"name":"stock","version":"6.1","file":"vmlinuz","initrd":"initrd.cpio","cmdline":"a=b"}"#;
        fs::write(root.join("kernels/stock/kernel.json"), json).unwrap();
        fs::write(root.join("default-kernel"), "stock\n").unwrap();
        let images = ImageDirectory::new(root.to_owned());
        (directory, images)
    }

    #[test]
    fn what_is_there_is_listed_and_found() {
        let (directory, images) = directory();
        assert_eq!(images.images().into_iter().collect::<Vec<_>>(), ["base"]);
        assert_eq!(images.root_image("base").unwrap(), directory.path().join("base/rootfs.erofs"));
        let kernel = images.kernel(None).unwrap();
        assert_eq!(kernel.name, "stock");
        assert_eq!(kernel.cmdline, "a=b");
        assert!(kernel.initrd.unwrap().ends_with("kernels/stock/initrd.cpio"));
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let (_directory, images) = directory();
        let error = images.root_image("python").unwrap_err().to_string();
        assert_eq!(error, r#"this node has no image "python"; it has base"#);
        for name in ["../base", "empty", "kernels", ""] {
            assert!(matches!(images.root_image(name), Err(ImageError::Unknown { .. })), "{name}");
        }
        assert!(images.kernel(Some("own")).unwrap_err().to_string().contains("stock"));
    }

    #[test]
    fn a_kernel_description_cannot_point_elsewhere() {
        let (directory, images) = directory();
        let path = directory.path().join("kernels/stock/kernel.json");
        for json in [r#"{"file":"../../etc/passwd"}"#, r#"{"file":""}"#, r#"{"file":"..","cmdline":""}"#, "{"]
        {
            fs::write(&path, json).unwrap();
            assert!(matches!(images.kernel(None), Err(ImageError::Unusable { .. })), "{json}");
        }
    }
}
