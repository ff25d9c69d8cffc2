//! Small tools without a layer of their own.

pub(crate) mod keyed_locks;
pub(crate) mod open_files;
pub(crate) mod secret_file;
pub(crate) mod take_once;
