//! What is said of a value that is out of bounds.

/// A value that contradicts another one or a fixed bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag} is {given}, it must be {bound}")]
pub struct ConfigError {
    pub flag: &'static str,
    pub given: String,
    pub bound: String,
}

pub(super) fn at_least(flag: &'static str, given: u64, bound: u64) -> Result<(), ConfigError> {
    if given >= bound {
        return Ok(());
    }
    Err(ConfigError { flag, given: given.to_string(), bound: format!("at least {bound}") })
}

pub(super) fn at_most(flag: &'static str, given: u64, other: &str, bound: u64) -> Result<(), ConfigError> {
    if given <= bound {
        return Ok(());
    }
    Err(ConfigError {
        flag,
        given: given.to_string(),
        bound: format!("at most {bound}, the value of {other}"),
    })
}

pub(super) fn below(flag: &'static str, given: u64, other: &str, bound: u64) -> Result<(), ConfigError> {
    if given < bound {
        return Ok(());
    }
    Err(ConfigError {
        flag,
        given: given.to_string(),
        bound: format!("less than {bound}, the value of {other}"),
    })
}
