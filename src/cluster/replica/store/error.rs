//! Why the store did not do what was asked. Pure.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use object_store::client::{HttpError, HttpErrorKind};

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
    /// The directory cannot be used.
    #[error("{}: {problem}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// There is no such object.
    #[error("the object is missing")]
    Missing,
    /// It is larger than an object can be.
    #[error("the object is larger than any that was written")]
    TooLarge,
    /// The store does not let this node do it.
    #[error("the object store refuses access")]
    Denied,
    /// The store has no room.
    #[error("the object store is full")]
    Full,
    /// It does not answer, or with an error of its own.
    #[error("the object store is unavailable: {0}")]
    Unavailable(String),
}

impl StoreError {
    pub(super) fn timeout() -> Self {
        Self::Unavailable("no answer in time".to_owned())
    }

    /// Whether the next try may succeed.
    pub(crate) fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// An object that is being created is not missing: its directory was removed meanwhile, or there is no bucket.
    pub(super) fn of_put(self) -> Self {
        match self {
            Self::Missing => Self::Unavailable("the bucket or directory is missing".to_owned()),
            error => error,
        }
    }

    /// Names what is known of an error, without the address and the text of an answer.
    pub(super) fn of(error: &object_store::Error) -> Self {
        use object_store::Error as E;
        match error {
            E::NotFound { .. } => Self::Missing,
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => Self::Denied,
            other => Self::of_cause(other),
        }
    }

    fn of_cause(error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return Self::of_io(error.kind());
            }
            if let Some(error) = error.downcast_ref::<HttpError>() {
                return Self::Unavailable(http_problem(error.kind()).to_owned());
            }
            if let Some(status) = status(error) {
                return match status {
                    401 | 403 => Self::Denied,
                    404 => Self::Missing,
                    507 => Self::Full,
                    _ => Self::Unavailable(format!("status {status}")),
                };
            }
            cause = error.source();
        }
        Self::Unavailable("an unexpected answer".to_owned())
    }

    pub(super) fn of_io(kind: io::ErrorKind) -> Self {
        use io::ErrorKind as K;
        match kind {
            K::NotFound => Self::Missing,
            K::StorageFull | K::QuotaExceeded => Self::Full,
            K::PermissionDenied | K::ReadOnlyFilesystem => Self::Denied,
            kind => Self::Unavailable(kind.to_string()),
        }
    }
}

/// The status of an answer. The type that has it is private to its crate; its text begins in the same way in all of them.
fn status(error: &(dyn Error + 'static)) -> Option<u16> {
    let text = error.to_string();
    let (_, rest) = text.split_once("non-2xx status code: ")?;
    rest.get(..3)?.parse().ok().filter(|status| (300..600).contains(status))
}

fn http_problem(kind: HttpErrorKind) -> &'static str {
    match kind {
        HttpErrorKind::Connect => "no connection",
        HttpErrorKind::Timeout => "no answer in time",
        HttpErrorKind::Request | HttpErrorKind::Interrupted => "the connection broke",
        _ => "the answer was not understood",
    }
}
