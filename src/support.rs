//! Small utilities without a layer of their own. They import nothing from the rest of the crate.

pub(crate) mod atomic_file;
pub(crate) mod blocking;
pub(crate) mod cause;
pub(crate) mod hex;
pub(crate) mod hidden;
#[cfg(feature = "broker")]
pub(crate) mod idle_timeout;
pub(crate) mod keyed_gates;
pub(crate) mod keyed_locks;
pub(crate) mod live;
pub(crate) mod lock;
pub(crate) mod open_files;
pub(crate) mod secret_file;
#[cfg(feature = "broker")]
pub(crate) mod tls;
