//! What a body asks for, answered whole or streamed.

use axum::{
    Json as JsonBody,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    StreamOptions, Usage,
    batch::{self, merge, usage},
    reply::Head,
    stream::{Chunks, Events},
};
use crate::{
    api::{
        collect::Completed,
        headers::Compute,
        sequences::{complete, queue},
        sse,
    },
    app::AppState,
    error::Error,
    infer::Generation,
    request::GenerateRequest,
};

/// What is to be generated and how it is to be answered.
pub(super) struct Plan<S> {
    /// One request for each prompt.
    pub(super) prompts: Vec<GenerateRequest>,
    /// Sequences for each prompt, and how many of them are answered.
    pub(super) generated: usize,
    pub(super) kept: usize,
    /// Only the prompt is answered. A token is generated for each sequence, and dropped.
    pub(super) prompt_only: bool,
    pub(super) stream: bool,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) model: String,
    /// Of the prompts that came as text.
    pub(super) characters: usize,
    pub(super) shape: S,
}

/// How chat and completions write the same things.
pub(super) trait Shape {
    /// Begins an answer's id.
    const PREFIX: &'static str;
    type Chunks: Chunks;
    type Whole: Serialize;

    /// The chunks of a stream, of which each generation is a choice.
    fn chunks(self, head: Head, generations: &[Generation]) -> Self::Chunks;

    /// The answer in one piece, from the sequences that are its choices.
    fn whole(self, head: Head, choices: Vec<Completed>, usage: Usage) -> Self::Whole;
}

pub(super) async fn answer<S: Shape>(
    state: &AppState,
    plan: Result<Plan<S>, Error>,
) -> Result<Response, Error> {
    let plan = plan.inspect_err(|error| state.metrics.rejected(error))?;
    let Plan { prompts, generated, kept, prompt_only, stream, stream_options, model, characters, shape } =
        plan;
    let adapter = prompts.first().map(|request| request.adapter.clone()).unwrap_or_default();
    let compute = Compute::start(state, adapter, characters);
    let head = Head::new(S::PREFIX, model);
    if stream {
        let generations = queue(state, prompts, generated).await?;
        let chunks = shape.chunks(head, &generations);
        let events = Events::new(chunks, stream_options, &generations, generated);
        let outputs = merge(generations).await?;
        let outputs = if prompt_only { batch::prompt_only(outputs) } else { outputs };
        return Ok(sse::respond(compute.stream_headers(), outputs, events));
    }
    let mut completed = complete(state, prompts, generated).await?;
    if prompt_only {
        completed.iter_mut().for_each(Completed::forget_output);
    }
    let usage = usage(&completed, generated);
    let headers = compute.headers(&completed, usage.prompt_tokens, usage.completion_tokens);
    let whole = shape.whole(head, best(completed, generated, kept), usage);
    Ok((headers, JsonBody(whole)).into_response())
}

/// Of each prompt's sequences those with the highest mean log-probability, best first; all, in their order,
/// when as many are wanted as there are.
fn best(completed: Vec<Completed>, generated: usize, kept: usize) -> Vec<Completed> {
    if generated == kept {
        return completed;
    }
    let mut completed = completed.into_iter();
    let mut choices = Vec::new();
    loop {
        let mut of_prompt: Vec<_> = completed.by_ref().take(generated).collect();
        if of_prompt.is_empty() {
            return choices;
        }
        of_prompt.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
        of_prompt.truncate(kept);
        choices.append(&mut of_prompt);
    }
}
