//! Bodies of requests: bounded in bytes, time and nesting before anything is parsed.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::openai::ApiError;

/// Deepest nesting of lists and objects.
const DEPTH_MAX: usize = 32;

/// Reads a JSON body.
///
/// # Errors
/// 413 where it is too long (by its own word already before a byte is read), 408 where it does not
/// come in time, 400 where it is nested too deeply, is no JSON, or of another form.
pub(super) async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    deadline: Duration,
) -> Result<T, ApiError> {
    if announced_bytes(headers).is_some_and(|bytes| bytes > bytes_max as u64) {
        return Err(ApiError::too_large(bytes_max));
    }
    let bytes = match tokio::time::timeout(deadline, to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => return Err(ApiError::too_large(bytes_max)),
        Err(_) => return Err(ApiError::too_slow()),
    };
    parse(&bytes)
}

fn announced_bytes(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, ApiError> {
    if depth_exceeds(bytes, DEPTH_MAX) {
        return Err(ApiError::invalid(
            None,
            format_args!("the body is nested deeper than {DEPTH_MAX} levels"),
        ));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let field = (path != ".").then_some(path);
        ApiError::invalid(field.as_deref(), error.into_inner())
    })?;
    json.end().map_err(|error| ApiError::invalid(None, error))?;
    Ok(value)
}

/// Whether lists and objects are nested deeper than `limit`, without parsing anything else.
fn depth_exceeds(json: &[u8], limit: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn nesting_is_counted_outside_strings() {
        assert!(!depth_exceeds(br#"{"a":"[[[[[\"[[[","b":[1]}"#, 2));
        assert!(depth_exceeds(b"[[[", 2));
        assert!(!depth_exceeds(b"[][][][]", 1));
    }

    #[tokio::test]
    async fn bombs_are_refused_before_they_are_read() {
        let read = |headers: HeaderMap, body: Body| async move {
            read_json::<Value>(&headers, body, 1000, Duration::from_secs(5))
                .await
                .map_err(|error| error.status().as_u16())
        };
        let endless = Body::from_stream(futures::stream::repeat_with(|| {
            Ok::<_, std::io::Error>(Bytes::from_static(b"[1,"))
        }));
        assert_eq!(read(HeaderMap::new(), endless).await, Err(413));
        let mut gigabyte = HeaderMap::new();
        gigabyte.insert(header::CONTENT_LENGTH, (1_u64 << 30).into());
        let never = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(read(gigabyte, never).await, Err(413));
        assert_eq!(read(HeaderMap::new(), Body::from("[".repeat(900))).await, Err(400));
        assert_eq!(read(HeaderMap::new(), Body::from("{} {}")).await, Err(400));
        assert!(read(HeaderMap::new(), Body::from(r#"{"a":[1]}"#)).await.is_ok());
    }
}
