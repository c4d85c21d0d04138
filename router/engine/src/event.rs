//! What the engine tells its caller about a request.

use std::time::Duration;

use crate::RequestId;

/// Another token the model could have sampled, with its log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternative {
    pub token: u32,
    pub logprob: f32,
}

/// The log-probability of one prompt token. The first token of a prompt has none.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptToken {
    pub token: u32,
    pub logprob: Option<f32>,
    pub alternatives: Vec<Alternative>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// `max_new_tokens` were generated.
    Length,
    /// One of the request's stop tokens was sampled; it is the last token.
    StopToken,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailureReason {
    DeadlineExceeded {
        queued: bool,
    },
    /// The shard reported an error for this row only, e.g. code `numeric_error`.
    Row {
        code: String,
        message: String,
    },
    /// The adapter could not be moved into a device slot.
    Adapter {
        message: String,
    },
    /// The shard group went away with the request in flight.
    ShardLost,
}

/// Events of one request come in this order: `Started`, `Prompt` (if asked for), `Token`s; then nothing after a token
/// with a finish reason, nor after `Failed`. A cancelled request has no further events.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The first prefill chunk was planned. Sent once, also when the request is later preempted.
    Started {
        id: RequestId,
        queued: Duration,
        cached_tokens: u32,
    },
    Prompt {
        id: RequestId,
        tokens: Vec<PromptToken>,
    },
    Token {
        id: RequestId,
        token: u32,
        logprob: f32,
        alternatives: Vec<Alternative>,
        finish: Option<FinishReason>,
    },
    Failed {
        id: RequestId,
        reason: FailureReason,
    },
}

impl Event {
    #[must_use]
    pub fn id(&self) -> RequestId {
        match self {
            Self::Started { id, .. }
            | Self::Prompt { id, .. }
            | Self::Token { id, .. }
            | Self::Failed { id, .. } => *id,
        }
    }
}
