//! The `pilotlight` program.

fn main() {
    pilotlight::sim::run_if_asked();
}
