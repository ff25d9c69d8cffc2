//! Placeholder.
/// Placeholder.
pub fn run_if_asked() {}
/// Placeholder.
pub fn main(_arguments: impl Iterator<Item = std::ffi::OsString>) -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
