//! `/v1/models`: the base model and the adapters that have been asked for.

use axum::{
    Json as JsonBody,
    extract::{Path, State, rejection::PathRejection},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{adapters::Listed, api::error::OpenAiErrors, app::AppState, error::Error};

#[derive(Serialize, ToSchema)]
pub struct ModelList {
    #[schema(value_type = String, example = "list")]
    pub object: &'static str,
    pub data: Vec<Model>,
}

#[derive(Serialize, ToSchema)]
pub struct Model {
    /// What clients put in `model`.
    pub id: String,
    #[schema(value_type = String, example = "model")]
    pub object: &'static str,
    pub created: u64,
    #[schema(value_type = String)]
    pub owned_by: &'static str,
    /// Where it came from.
    pub root: String,
    /// The base model of an adapter.
    #[schema(required)]
    pub parent: Option<String>,
    /// Tokens of prompt and completion together.
    #[schema(required)]
    pub max_model_len: Option<u32>,
}

/// List the base model and the adapters known to this server
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "OpenAI",
    responses((status = 200, body = ModelList), OpenAiErrors)
)]
pub async fn models(State(state): State<AppState>) -> JsonBody<ModelList> {
    let adapters = state.registry.list().into_iter().map(|adapter| of_adapter(&state, adapter));
    JsonBody(ModelList { object: "list", data: [base(&state)].into_iter().chain(adapters).collect() })
}

/// One model
///
/// An adapter that nobody has asked for yet is not listed, and may be served all the same.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "OpenAI",
    params(("id" = String, Path)),
    responses((status = 200, body = Model), OpenAiErrors)
)]
pub async fn model(
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<JsonBody<Model>, Error> {
    let Path(id) = id.map_err(|_| Error::AdapterNotFound { id: String::new() })?;
    find(&state, id)
}

/// The same for an id with slashes in it.
pub async fn model_of_owner(
    State(state): State<AppState>,
    id: Result<Path<(String, String)>, PathRejection>,
) -> Result<JsonBody<Model>, Error> {
    let Path((owner, rest)) = id.map_err(|_| Error::AdapterNotFound { id: String::new() })?;
    find(&state, format!("{owner}/{rest}"))
}

fn find(state: &AppState, id: String) -> Result<JsonBody<Model>, Error> {
    if id == state.config.model.model_id {
        return Ok(JsonBody(base(state)));
    }
    let adapter = state.registry.find(&id).ok_or(Error::AdapterNotFound { id })?;
    Ok(JsonBody(of_adapter(state, adapter)))
}

fn base(state: &AppState) -> Model {
    let id = state.config.model.model_id.clone();
    let created = state.model.get().map_or(0, |model| model.created);
    entry(state, id.clone(), id, None, created)
}

fn of_adapter(state: &AppState, adapter: Listed) -> Model {
    entry(state, adapter.id, adapter.root, Some(state.config.model.model_id.clone()), adapter.created)
}

fn entry(state: &AppState, id: String, root: String, parent: Option<String>, created: u64) -> Model {
    let max_model_len = state.model.get().map(|model| model.max_total_tokens);
    Model { id, object: "model", created, owned_by: "lorikeet", root, parent, max_model_len }
}
