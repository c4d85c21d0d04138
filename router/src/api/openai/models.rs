//! `/v1/models`: the base model, the adapters that have been asked for, and those that lie below the roots.

use axum::{
    Json as JsonBody,
    extract::{Path, State, rejection::PathRejection},
};
use rustc_hash::FxHashSet;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    adapters::{AdapterSource, Listed, name},
    api::error::OpenAiErrors,
    app::AppState,
    error::Error,
};

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
    let known = state.registry.list();
    let catalogue = state.registry.catalogue.list.now().await;
    let asked: FxHashSet<&str> = known.iter().map(|adapter| adapter.id.as_str()).collect();
    let others = catalogue.iter().filter(|(id, _)| !asked.contains(id.as_str()));
    let mut data = vec![base(&state)];
    data.extend(others.map(|(id, entry)| of_catalogue(&state, id.clone(), entry.written)));
    data.extend(known.iter().map(|adapter| {
        let written = catalogue.get(&adapter.id).map(|entry| entry.written);
        of_adapter(&state, adapter, written)
    }));
    data[1..].sort_by(|a, b| a.id.cmp(&b.id));
    JsonBody(ModelList { object: "list", data })
}

/// One model
///
/// An adapter deep below a root is not listed before it is asked for, and may be served all the same.
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
    find(&state, id).await
}

/// The same for an id with slashes in it.
pub async fn model_of_owner(
    State(state): State<AppState>,
    id: Result<Path<(String, String)>, PathRejection>,
) -> Result<JsonBody<Model>, Error> {
    let Path((owner, rest)) = id.map_err(|_| Error::AdapterNotFound { id: String::new() })?;
    find(&state, format!("{owner}/{rest}")).await
}

async fn find(state: &AppState, id: String) -> Result<JsonBody<Model>, Error> {
    if id == state.config.model.model_id {
        return Ok(JsonBody(base(state)));
    }
    let written = state.registry.catalogue.list.now().await.get(&id).map(|entry| entry.written);
    match (state.registry.find(&id), written) {
        (Some(adapter), written) => Ok(JsonBody(of_adapter(state, &adapter, written))),
        (None, Some(written)) => Ok(JsonBody(of_catalogue(state, id, written))),
        (None, None) => Err(Error::AdapterNotFound { id }),
    }
}

fn base(state: &AppState) -> Model {
    let id = state.config.model.model_id.clone();
    let created = state.model.get().map_or(0, |model| model.created);
    entry(state, id.clone(), id, None, created)
}

/// `written` is the catalogue's, which is said already before anyone asks for the adapter.
fn of_adapter(state: &AppState, adapter: &Listed, written: Option<u64>) -> Model {
    let parent = Some(state.config.model.model_id.clone());
    let created = written.unwrap_or(adapter.created);
    entry(state, adapter.id.clone(), adapter.root.clone(), parent, created)
}

fn of_catalogue(state: &AppState, id: String, written: u64) -> Model {
    let root = name::key(&id, AdapterSource::Local).to_string();
    entry(state, id, root, Some(state.config.model.model_id.clone()), written)
}

fn entry(state: &AppState, id: String, root: String, parent: Option<String>, created: u64) -> Model {
    let max_model_len = state.model.get().map(|model| model.max_total_tokens);
    Model { id, object: "model", created, owned_by: "lorikeet", root, parent, max_model_len }
}
