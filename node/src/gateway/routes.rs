//! Routes, and what each does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use futures::future::try_join_all;
use serde_json::{Value, json};

use super::body::read_json;
use super::keys::{self, KeyName};
use super::limits::Place;
use super::openai::{ApiError, Asked, ChatRequest, Chunks, CompletionRequest, Form, Shape};
use super::session::Session;
use super::{Shared, measure};

/// All routes. Only the probes need no key.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let probes = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/healthz", get(ready))
        .route("/readyz", get(ready));
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/metrics", get(metrics))
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_route)
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), with_key))
        .merge(probes)
        .with_state(shared)
}

/// Lets a request pass that bears a key of the cluster.
async fn with_key(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    let key = keys::find(request.headers(), &shared.view.borrow().keys);
    let route = route_label(request.uri().path());
    let response = match key {
        Some(key) => {
            request.extensions_mut().insert(key);
            next.run(request).await
        }
        None => ApiError::unauthorized().into_response(),
    };
    measure::responded(route, response.status().as_u16());
    response
}

/// A bounded set of names for metrics, whatever paths clients invent.
fn route_label(path: &str) -> &'static str {
    match path {
        "/v1/completions" => "/v1/completions",
        "/v1/chat/completions" => "/v1/chat/completions",
        "/metrics" => "/metrics",
        path if path.starts_with("/v1/models") => "/v1/models",
        _ => "other",
    }
}

/// Whether requests would be answered: not while draining, nor without a model.
async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    if shared.draining.load(Ordering::Acquire) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if shared.pool.models().is_empty() {
        (StatusCode::SERVICE_UNAVAILABLE, "no model is served\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    shared.loads.refresh(&shared.pool).await;
    let text = (shared.metrics_text)();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let data: Vec<Value> = shared.pool.models().iter().map(|model| about(model)).collect();
    Json(json!({"object": "list", "data": data}))
}

async fn model(
    State(shared): State<Arc<Shared>>,
    Path(model): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let served = shared.pool.models();
    if served.contains(&model) {
        Ok(Json(about(&model)))
    } else {
        Err(ApiError::unknown_model(&model, &served))
    }
}

fn about(model: &str) -> Value {
    json!({"id": model, "object": "model", "created": 0, "owned_by": "sixfold"})
}

async fn unknown_route(request: Request) -> ApiError {
    ApiError::unknown_route(request.method().as_str(), request.uri().path())
}

async fn completions(
    State(shared): State<Arc<Shared>>,
    Extension(key): Extension<KeyName>,
    request: Request,
) -> Result<Response, ApiError> {
    let place = shared.limits.enter(&key).map_err(ApiError::overload)?;
    let asked = read::<CompletionRequest>(&shared, request).await?.understand(rand::random())?;
    answer(shared, place, asked, Form::Completion).await
}

async fn chat_completions(
    State(shared): State<Arc<Shared>>,
    Extension(key): Extension<KeyName>,
    request: Request,
) -> Result<Response, ApiError> {
    let place = shared.limits.enter(&key).map_err(ApiError::overload)?;
    let asked = read::<ChatRequest>(&shared, request).await?.understand(rand::random())?;
    answer(shared, place, asked, Form::Chat).await
}

async fn read<T: serde::de::DeserializeOwned>(shared: &Shared, request: Request) -> Result<T, ApiError> {
    let (parts, body) = request.into_parts();
    read_json(&parts.headers, body, shared.options.body_bytes_max, shared.options.body_deadline()).await
}

async fn answer(
    shared: Arc<Shared>,
    mut place: Place,
    asked: Asked,
    form: Form,
) -> Result<Response, ApiError> {
    if !shared.pool.knows(&asked.model) {
        let served: BTreeSet<String> = shared.pool.models();
        return Err(ApiError::unknown_model(&asked.model, &served));
    }
    place.widen(asked.requests.len()).map_err(ApiError::overload)?;
    let scored = asked.requests.iter().any(|request| request.logprobs.is_some());
    let shape = Shape::new(form, &asked.model, scored, rand::random());
    let sessions = asked.requests.into_iter().map(|request| Session::new(&shared, request));
    if !asked.stream {
        let choices = try_join_all(sessions.map(Session::collect)).await?;
        return Ok(Json(shape.whole(&choices)).into_response());
    }
    let choices = try_join_all(sessions.map(Session::begin)).await?;
    let body = Body::from_stream(Chunks::new(shape, asked.include_usage, choices).into_bytes(place));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}
