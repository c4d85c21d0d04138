//! Why an adapter cannot be had: what shards answer, kept without the name it was asked for by.

use std::time::Duration;

use lorikeet_engine::residency::Failure;
use tonic::{Code, Status};

use crate::error::Error;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LoadFailure {
    /// Not there, or outside every root: the caller learns no difference.
    NotFound,
    Invalid(String),
    TooLarge(String),
    NoSpace(String),
    /// The bytes are not those of the digest.
    Changed,
    Unavailable(String),
    Timeout,
    Internal,
}

impl From<&Status> for LoadFailure {
    fn from(status: &Status) -> Self {
        let message = || status.message().to_owned();
        match status.code() {
            Code::NotFound | Code::PermissionDenied | Code::Unauthenticated => Self::NotFound,
            Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented => {
                Self::Invalid(message())
            }
            Code::OutOfRange => Self::TooLarge(message()),
            Code::ResourceExhausted => Self::NoSpace(message()),
            Code::DataLoss => Self::Changed,
            Code::Unavailable => Self::Unavailable(message()),
            Code::DeadlineExceeded | Code::Cancelled => Self::Timeout,
            Code::Ok | Code::Unknown | Code::AlreadyExists | Code::Aborted | Code::Internal => Self::Internal,
        }
    }
}

/// As the caller who asked for `id` is told.
pub(super) fn error(id: &str, failure: Failure<LoadFailure>, limit: Duration) -> Error {
    let id = id.to_owned();
    match failure {
        Failure::TooLarge { given, limit } => {
            let message =
                format!("it takes {given} bytes in memory, the budget is {limit} (--adapter-host-bytes)");
            Error::AdapterTooLarge { id, message }
        }
        Failure::Changed { .. } => Error::AdapterChanged { id },
        Failure::TooManyNames { .. } => Error::Overloaded { retry_after: Duration::from_secs(10) },
        Failure::Flight(failure) => match failure {
            LoadFailure::NotFound => Error::AdapterNotFound { id },
            LoadFailure::Invalid(message) => Error::AdapterInvalid { id, message },
            LoadFailure::TooLarge(message) => Error::AdapterTooLarge { id, message },
            LoadFailure::NoSpace(message) => Error::AdapterNoSpace { id, message },
            LoadFailure::Unavailable(message) => Error::AdapterUnavailable { id, message },
            LoadFailure::Timeout => Error::AdapterTimeout { id, limit },
            LoadFailure::Changed => Error::AdapterChanged { id },
            LoadFailure::Internal => Error::Internal,
        },
    }
}
