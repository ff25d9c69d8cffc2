//! The primitives of [`handoff`](super::handoff). The model check of `tests/handoff.rs` puts loom's in their place.

pub(super) use std::sync::{Mutex, MutexGuard};
