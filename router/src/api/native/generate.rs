//! `/`, `/generate` and `/generate_stream`.

use axum::{
    Json as JsonBody,
    extract::{Extension, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};

use super::{
    convert::{Reply, Wanted, convert},
    stream::stream,
    types::{BestOfSequence, Details, GenerateBody, GenerateResponse, StreamResponse, Token},
};
use crate::{
    api::{
        RequestId, collect::Completed, error::NativeErrors, extract::Json, headers::Compute,
        sequences::complete,
    },
    app::AppState,
    error::Error,
};

/// Generate, as LoRAX clients ask for it
///
/// The answer is a list of one, or a stream of server-sent events if `stream` is true.
#[utoipa::path(
    post,
    path = "/",
    tag = "Native",
    request_body = GenerateBody,
    responses(
        (status = 200, content(
            (Vec<GenerateResponse> = "application/json"),
            (StreamResponse = "text/event-stream"),
        )),
        NativeErrors,
    )
)]
pub async fn compat_generate(
    state: State<AppState>,
    id: Extension<RequestId>,
    Json(body): Json<GenerateBody>,
) -> Result<Response, Error> {
    if body.stream == Some(true) {
        return generate_stream(state, id, Json(body)).await;
    }
    let (headers, response) = whole(&state, id, body).await?;
    Ok((headers, JsonBody([response])).into_response())
}

/// Generate
#[utoipa::path(
    post,
    path = "/generate",
    tag = "Native",
    request_body = GenerateBody,
    responses((status = 200, body = GenerateResponse), NativeErrors)
)]
pub async fn generate(
    state: State<AppState>,
    id: Extension<RequestId>,
    Json(body): Json<GenerateBody>,
) -> Result<Response, Error> {
    let (headers, response) = whole(&state, id, body).await?;
    Ok((headers, JsonBody(response)).into_response())
}

/// Generate, token by token
///
/// Server-sent events, one for each token. The last carries the text. There is no `[DONE]`.
#[utoipa::path(
    post,
    path = "/generate_stream",
    tag = "Native",
    request_body = GenerateBody,
    responses((status = 200, body = StreamResponse, content_type = "text/event-stream"), NativeErrors)
)]
pub async fn generate_stream(
    State(state): State<AppState>,
    Extension(RequestId(id)): Extension<RequestId>,
    Json(body): Json<GenerateBody>,
) -> Result<Response, Error> {
    let (request, wanted) =
        convert(body, Reply::Stream, &state.config, id).inspect_err(|error| state.metrics.rejected(error))?;
    let compute = Compute::start(&state, request.adapter.clone(), wanted.characters);
    stream(state.infer.generate(request).await?, &wanted, &compute).await
}

async fn whole(
    state: &AppState,
    Extension(RequestId(id)): Extension<RequestId>,
    body: GenerateBody,
) -> Result<(HeaderMap, GenerateResponse), Error> {
    let (request, wanted) =
        convert(body, Reply::Whole, &state.config, id).inspect_err(|error| state.metrics.rejected(error))?;
    let compute = Compute::start(state, request.adapter.clone(), wanted.characters);
    let mut sequences = complete(state, vec![request], wanted.sequences).await?;
    // The likeliest wins; of equals the first.
    sequences.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
    let best = sequences.first().ok_or(Error::Incomplete)?;
    let (prompt_tokens, generated_tokens) = (best.info.prompt_tokens.into(), best.generated_tokens.into());
    let headers = compute.headers(&sequences, prompt_tokens, generated_tokens);
    let mut sequences = sequences.into_iter();
    let best = sequences.next().ok_or(Error::Incomplete)?;
    Ok((headers, respond(best, sequences, &wanted)))
}

fn respond(best: Completed, others: impl Iterator<Item = Completed>, wanted: &Wanted) -> GenerateResponse {
    let generated_text = full_text(&best, wanted);
    if !wanted.details {
        return GenerateResponse { generated_text, details: None };
    }
    let others: Vec<_> = others
        .map(|other| BestOfSequence {
            generated_text: full_text(&other, wanted),
            finish_reason: other.reason.into(),
            generated_tokens: other.generated_tokens,
            seed: other.info.seed,
            tokens: tokens(&other, wanted),
            prefill: other.prompt.into_iter().map(Into::into).collect(),
        })
        .collect();
    GenerateResponse {
        generated_text,
        details: Some(Details {
            finish_reason: best.reason.into(),
            prompt_tokens: best.info.prompt_tokens,
            generated_tokens: best.generated_tokens,
            skipped_tokens: 0,
            seed: best.info.seed,
            tokens: tokens(&best, wanted),
            top_tokens: wanted
                .top_tokens
                .map(|count| best.tokens.iter().map(|token| Token::top(token, count)).collect()),
            prefill: best.prompt.into_iter().map(Into::into).collect(),
            best_of_sequences: (!others.is_empty()).then_some(others),
        }),
    }
}

fn tokens(completed: &Completed, wanted: &Wanted) -> Vec<Token> {
    completed.tokens.iter().map(|token| Token::new(token, wanted.alternatives)).collect()
}

fn full_text(completed: &Completed, wanted: &Wanted) -> String {
    if wanted.full_text {
        format!("{}{}", completed.info.prompt_text, completed.text)
    } else {
        completed.text.clone()
    }
}
