# A thin front of `cargo xtask`: see `cargo xtask help`.
.PHONY: demo test check kernel images clean

NODES ?= 1
# where rustup puts cargo, which a shell that is no login shell may not know
export PATH := $(HOME)/.cargo/bin:$(PATH)

demo: toolchain ## from nothing to running sandboxes, and back to nothing
	cargo xtask demo --nodes $(NODES)

test: toolchain ## every test, real microVMs included
	cargo xtask test

check: toolchain ## format, lints, unit tests
	cargo xtask check

kernel: toolchain ## our own guest kernel, used by default once it is there
	cargo xtask kernel

images: toolchain ## guest root file system, stock kernel, virtual node
	cargo xtask images

clean: toolchain ## everything under build/; `cargo clean` removes target/
	cargo xtask clean

.PHONY: toolchain
toolchain:
	@sh xtask/toolchain.sh
