//! The installed CLI: which executable is started, of which version it is, and who else could write it.

pub(crate) mod program;
pub(crate) mod trust;
pub(crate) mod version_query;
pub(crate) mod versions;
