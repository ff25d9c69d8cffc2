//! Connections and bodies: accepting, limits on count, size and time, CORS. Knows no session.

pub(crate) mod body;
pub(crate) mod capacity;
pub(crate) mod connection;
pub(crate) mod cors;
mod slots;
