//! Errors in OpenAI's form.

use std::collections::BTreeSet;
use std::fmt::Display;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::gateway::failover::AnswerError;
use crate::gateway::limits::Overload;

/// Seconds after which a client that was turned away may come again.
const RETRY_AFTER_S: u64 = 1;

/// What a client is told when something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
}

const INVALID: &str = "invalid_request_error";

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Display) -> Self {
        Self { status, kind, code: None, param: None, message: message.to_string() }
    }

    fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// A field, or the whole body, is wrong.
    pub(in crate::gateway) fn invalid(field: Option<&str>, message: impl Display) -> Self {
        let message = match field {
            Some(field) => format!("`{field}`: {message}"),
            None => message.to_string(),
        };
        Self { param: field.map(str::to_owned), ..Self::new(StatusCode::BAD_REQUEST, INVALID, message) }
    }

    /// No valid key.
    pub(in crate::gateway) fn unauthorized() -> Self {
        let message = "no valid key: send `Authorization: Bearer KEY` with a key of this cluster";
        Self::new(StatusCode::UNAUTHORIZED, INVALID, message).with_code("invalid_api_key")
    }

    /// No such model.
    pub(in crate::gateway) fn unknown_model(model: &str, served: &BTreeSet<String>) -> Self {
        let shown: String = model.chars().take(80).collect();
        let served: Vec<String> = served.iter().map(|model| format!("`{model}`")).collect();
        let served = if served.is_empty() {
            "no model is served now".to_owned()
        } else {
            format!("served: {}", served.join(", "))
        };
        let message = format!("the model `{shown}` does not exist; {served}");
        let error = Self::new(StatusCode::NOT_FOUND, INVALID, message).with_code("model_not_found");
        Self { param: Some("model".to_owned()), ..error }
    }

    /// No such route.
    pub(in crate::gateway) fn unknown_route(method: &str, path: &str) -> Self {
        let path: String = path.chars().take(80).collect();
        Self::new(StatusCode::NOT_FOUND, INVALID, format_args!("there is no `{method} {path}`"))
            .with_code("unknown_url")
    }

    /// The body is too long.
    pub(in crate::gateway) fn too_large(bytes_max: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            INVALID,
            format_args!("the body has more than {bytes_max} bytes"),
        )
    }

    /// The body does not come.
    pub(in crate::gateway) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "the body did not come in time")
    }

    /// Too much at once.
    pub(in crate::gateway) fn overload(overload: Overload) -> Self {
        match overload {
            Overload::Key => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "this key has too many requests in the making",
            )
            .with_code("rate_limit_exceeded"),
            Overload::Gateway => Self::busy(),
        }
    }

    /// Nobody has room.
    pub(in crate::gateway) fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "all replicas are busy; try again")
            .with_code("overloaded")
    }

    /// What the client sees as a status.
    #[cfg(test)]
    pub(in crate::gateway) fn status(&self) -> StatusCode {
        self.status
    }

    /// The body, also of an error in the middle of a stream.
    pub(in crate::gateway) fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl From<AnswerError> for ApiError {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Invalid { field, message } => Self::invalid(Some(&field), message),
            AnswerError::Busy => Self::busy(),
            AnswerError::Unavailable(last) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                format_args!("no replica could answer: {last}"),
            )
            .with_code("unavailable"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
