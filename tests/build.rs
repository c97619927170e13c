//! Builds the image of `tests/evil-guest`: a freestanding program for a processor without vector registers, which no
//! target of a stable toolchain is. So the compiler is called directly, for the host's target with all of it taken out.

use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "evil-guest/src";

/// Code generation: nothing unwinds, nothing is moved at load time, no vector registers.
const CODE: [&str; 4] =
    ["panic=abort", "opt-level=2", "relocation-model=static", "target-feature=-sse,-sse2,+soft-float"];
/// Linking: no library, the image where a kernel lies, the entry that its PVH note names.
const LINK: [&str; 6] = [
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--image-base=0x100000",
    "-Wl,--entry=pvh_entry",
    "-Wl,--build-id=none",
];

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    let variable =
        |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"));
    let image = PathBuf::from(variable("OUT_DIR")).join("evil-guest");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition", "2024", "--crate-name", "pinfold_evil_guest", "--crate-type", "bin"]);
    rustc.args(["--cfg", "freestanding", "--target", "x86_64-unknown-linux-gnu"]);
    rustc.args(CODE.iter().flat_map(|option| ["-C", option]));
    for option in LINK {
        rustc.arg("-C").arg(format!("link-arg={option}"));
    }
    rustc.arg("-o").arg(&image).arg(format!("{SOURCE}/lib.rs"));
    let output = rustc.output().expect("the compiler of this build starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
