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

# Everything that must hold before a merge; installs what the tests need under target/.
all:
    tests/run
