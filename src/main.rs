//! The `pilotlight` program.
fn main() {
    pilotlight::shim::run_if_asked();
    pilotlight::sim::run_if_asked();
}
