//! The whole route table.
//!
//! Layers, from the outside in, each where it is for a reason:
//! 1. request id: every response has one, whatever goes wrong further in;
//! 2. access log: sees the final status, and knows the id;
//! 3. CORS, if origins are listed: browsers must be able to read errors too;
//! 4. errors: whatever an inner layer or a handler refuses gets its body here, in the dialect of its path;
//! 5. panics: become errors;
//! 6. the bound on the size of the headers;
//! 7. the bound on concurrent requests: only around the routes that take bodies, which it bounds together with
//!    `api::extract`, where they are read; probes always answer.

use axum::{
    Router,
    extract::Request,
    http::header::CONTENT_TYPE,
    middleware::{from_fn, from_fn_with_state},
    routing::get,
};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::SwaggerUi;

use crate::{
    api::{self, health, info, metrics, native, openai, tokenize},
    app::AppState,
    error::Error,
    middleware::{
        Places, access_log, catch_panic, cors, limit_concurrency, limit_headers, refuse, render_errors,
        request_id,
    },
};

#[derive(OpenApi)]
#[openapi(
    info(title = "Lorikeet", description = "Thousands of LoRA adapters of one model, from one server"),
    components(schemas(api::ErrorResponse, api::OpenAiErrorResponse)),
    tags(
        (name = "Native", description = "The API of LoRAX and text-generation-inference"),
        (name = "OpenAI", description = "The API of OpenAI, with adapters as models"),
        (name = "Server", description = "State of the server"),
    )
)]
struct Description;

fn with_bodies() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(native::compat_generate))
        .routes(routes!(native::generate))
        .routes(routes!(native::generate_stream))
        .routes(routes!(openai::completions::completions))
        .routes(routes!(openai::chat::chat_completions))
        .routes(routes!(tokenize::tokenize))
}

fn without_bodies() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(openai::models::models))
        .routes(routes!(openai::models::model))
        .routes(routes!(info::info))
        .routes(routes!(health::root))
        .routes(routes!(health::health))
        .routes(routes!(health::ping))
        .routes(routes!(health::startup))
        .routes(routes!(metrics::metrics))
}

/// The service for these handlers' state.
pub fn router(state: AppState) -> Router {
    let places = Places::new(state.config.limits.max_concurrent_requests, state.metrics.clone());
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .merge(with_bodies().layer(from_fn_with_state(places, limit_concurrency)))
        .merge(without_bodies())
        .split_for_parts();
    let headers = (state.config.http.max_header_bytes, state.metrics.clone());
    let cors = cors(&state.config.http.cors_allow_origin);
    let spec = description.to_json().unwrap_or_default();
    let router = router
        // Adapter ids have slashes, which not every client escapes.
        .route("/v1/models/{owner}/{*id}", get(openai::models::model_of_owner))
        .route("/api-doc/openapi.json", get(|| async { ([(CONTENT_TYPE, "application/json")], spec) }))
        .merge(SwaggerUi::new("/docs").url("/openapi.json", description))
        .fallback(|request: Request| refuse(request, Error::RouteNotFound))
        .method_not_allowed_fallback(|request: Request| refuse(request, Error::MethodNotAllowed))
        .layer(from_fn_with_state(headers, limit_headers))
        .layer(CatchPanicLayer::custom(catch_panic))
        .layer(from_fn(render_errors));
    let router = match cors {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.layer(from_fn(access_log)).layer(from_fn(request_id)).with_state(state)
}
