# Recipes for contributors. Install `just` with: pip install rust-just

# Lists the recipes.
default:
    @just --list

# Format, lints and unit tests, in seconds.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --quiet -- -D warnings
    cargo test --workspace --lib --quiet

# Every test that needs nothing installed; lists what is left out.
test:
    tests/run --quick

# What a release consists of, into target/dist; docs/release.md has what it needs.
release:
    release/build
    release/try

# The pictures of docs/page.md (needs Chromium, etcd and Pillow).
pictures:
    cargo test --test it page::
    cargo test --test cluster page::
    python3 docs/page/shrink.py target/page

# Everything that must hold before a merge; installs what the tests need under target/.
all:
    tests/run
