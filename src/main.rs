//! The `pilotlight` program.
fn main() {}
