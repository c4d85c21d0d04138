//! Types of flag values.

use std::convert::Infallible;
use std::str::FromStr;

use clap::ValueEnum;

/// A model's name, split from its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId {
    pub name: String,
    pub revision: Option<String>,
}

impl FromStr for ModelId {
    type Err = Infallible;

    /// `name@revision`; an `@` in a path belongs to the path.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let whole = || Self { name: text.to_owned(), revision: None };
        if std::path::Path::new(text).exists() {
            return Ok(whole());
        }
        Ok(match text.rsplit_once('@') {
            Some((name, revision)) if !name.is_empty() && !revision.is_empty() && !revision.contains('/') => {
                Self { name: name.to_owned(), revision: Some(revision.to_owned()) }
            }
            _ => whole(),
        })
    }
}

/// Type in which weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// The checkpoint's own; float16 for a quantised GGUF file
    Auto,
    Float32,
    Bfloat16,
    Float16,
}

impl Dtype {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
        }
    }
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// A GPU if there is one, else the CPU
    Auto,
    Cpu,
    Cuda,
}

impl Device {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

pub(super) fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=1024) => Ok(threads),
        _ => Err("expected a number from 1 to 1024".to_owned()),
    }
}

/// Least level of log records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}
