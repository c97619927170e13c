#!/bin/sh
# What `cargo xtask` itself needs: a linker and a recent enough Rust. Says what it installs, or what is missing.
set -eu
wanted=1.95

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
        echo "error: installing packages needs root's rights: run this as root, or install sudo" >&2
        exit 1
    fi
}

install() {
    apt-cache show "$1" >/dev/null 2>&1 || as_root apt-get update -q
    apt-cache show "$1" >/dev/null 2>&1 || return 1
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

new_enough() {
    command -v cargo >/dev/null && command -v rustc >/dev/null || return 1
    have=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ]
}

if ! command -v cc >/dev/null; then
    echo "• compiler: Rust links its programs with the C compiler; installing gcc"
    install gcc libc6-dev
fi

# where rustup puts it, which a non-login shell may not have in PATH
[ -x "$HOME/.cargo/bin/cargo" ] && PATH="$HOME/.cargo/bin:$PATH"
if ! new_enough; then
    if ! command -v rustup >/dev/null; then
        echo "• Rust: $wanted or newer is needed; installing rustup, which manages it"
        install rustup || {
            echo "error: this distribution has no package rustup: install Rust $wanted or newer by https://rustup.rs, then try again" >&2
            exit 1
        }
    fi
    rustup toolchain install stable --profile minimal --component rustfmt --component clippy
    rustup default stable
    new_enough || {
        echo "error: Rust $wanted or newer is needed, and rustc here is $(rustc --version 2>/dev/null || echo missing)" >&2
        exit 1
    }
fi
