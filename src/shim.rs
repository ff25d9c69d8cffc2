//! Placeholder.
/// Placeholder.
pub fn run_if_asked() {}
