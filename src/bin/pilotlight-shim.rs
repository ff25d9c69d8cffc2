//! The parent of one CLI process. See `pilotlight::shim`.
fn main() {
    pilotlight::shim::main()
}
