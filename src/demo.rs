//! Placeholder.

use std::process::ExitCode;

use crate::options::Options;

pub(crate) fn run(_options: &Options) -> ExitCode {
    ExitCode::FAILURE
}
