//! `/v1/completions`.

mod convert;
mod logprobs;
mod stream;
mod types;

use axum::{
    Json as JsonBody,
    extract::{Extension, State},
    response::{IntoResponse, Response},
};

use self::{
    convert::{Plan, convert},
    stream::CompletionChunks,
};
pub use types::*;

use super::{
    batch::{complete, fan_out, merge, start, usage},
    reply::{FINGERPRINT, Head, finish_reason},
    stream::Events,
};
use crate::{
    api::{collect::Completed, error::OpenAiErrors, extract::Json, headers::Compute, sse},
    app::AppState,
    error::Error,
    middleware::RequestId,
};

/// Complete a text
///
/// `model` is the base model or an adapter. With `stream`, chunks as server-sent events, ended by `[DONE]`.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "OpenAI",
    request_body = CompletionBody,
    responses(
        (status = 200, description = "The completion, or chunks of it", content(
            (Completion = "application/json"),
            (CompletionChunk = "text/event-stream"),
        )),
        OpenAiErrors,
    )
)]
pub async fn completions(
    State(state): State<AppState>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Json(body): Json<CompletionBody>,
) -> Result<Response, Error> {
    let plan =
        convert(body, &state.config, &request_id).inspect_err(|error| state.metrics.rejected(error))?;
    let adapter = plan.prompts.first().map(|request| request.adapter.clone()).unwrap_or_default();
    let compute = Compute::start(&state, adapter, plan.characters);
    let head = Head::new("cmpl", plan.model.clone());
    if plan.stream {
        let generations = start(&state, fan_out(plan.prompts, plan.generated)).await?;
        let chunks = CompletionChunks::new(head, plan.echo, plan.logprobs, &generations);
        let events = Events::new(chunks, plan.stream_options, &generations, plan.generated);
        return Ok(sse::respond(compute.stream_headers(), merge(generations).await?, events));
    }
    let Plan { prompts, generated, kept, echo, prompt_only, logprobs, .. } = plan;
    let mut completed = complete(&state, fan_out(prompts, generated)).await?;
    if prompt_only {
        completed.iter_mut().for_each(Completed::forget_output);
    }
    let usage = usage(&completed, generated);
    let headers = compute.headers(&completed, usage.prompt_tokens, usage.completion_tokens);
    let choices = best(completed, generated, kept)
        .into_iter()
        .enumerate()
        .map(|(index, completed)| choice(index, completed, echo, logprobs))
        .collect();
    let Head { id, created, model } = head;
    let (object, system_fingerprint) = ("text_completion", FINGERPRINT);
    Ok((headers, JsonBody(Completion { id, object, created, model, system_fingerprint, choices, usage }))
        .into_response())
}

/// Of each prompt's sequences those with the highest mean log-probability, best first; all, in their order, when as
/// many are wanted as there are.
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

fn choice(index: usize, completed: Completed, echo: bool, logprobs: Option<u32>) -> CompletionChoice {
    let logprobs = logprobs.map(|count| {
        let mut table = logprobs::Table::new(count);
        if echo {
            table.prompt(&completed.prompt, &completed.info.prompt_text);
        }
        for token in &completed.tokens {
            table.token(token);
        }
        table.take()
    });
    let text = if echo { completed.info.prompt_text + &completed.text } else { completed.text };
    CompletionChoice { index, text, logprobs, finish_reason: finish_reason(completed.reason) }
}
