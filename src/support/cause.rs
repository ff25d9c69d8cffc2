//! Causes of errors that are cloned and compared.

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Cause of an error, shared by the clones of the error. Two causes are equal if their messages are.
///
/// As the `source` of an error it is the original error, for example an [`std::io::Error`] to downcast to.
#[derive(Clone)]
pub struct Cause(Arc<dyn Error + Send + Sync>);

// Not an `Error` itself: `source()` returns the original through this.
impl Deref for Cause {
    type Target = dyn Error + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Cause {
    fn from(error: E) -> Self {
        Self(Arc::new(error))
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_string() == other.0.to_string()
    }
}

impl Eq for Cause {}
