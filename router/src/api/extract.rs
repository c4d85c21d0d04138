//! The JSON extractor: every rejection is an [`Error`] that says what was wrong and where.

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
    http::{
        HeaderMap,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    },
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tokio::time::timeout;

use super::wire::Object;
use crate::{app::AppState, config::Http, error::Error};

/// The path of what is wrong with the body as a whole.
pub(super) const BODY: &str = "body";
/// Serde names the allowed values of an enum, or repeats a string of the body: as many characters as help.
const MAX_MESSAGE: usize = 300;

/// A request body of `Content-Type: application/json`.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Error> {
        let parsed = async {
            let json = is_json(request.headers());
            // What is refused is read too: see `middleware::refuse`.
            let body = read(request, &state.config.http).await?;
            if json { parse(&body) } else { Err(Error::UnsupportedMediaType) }
        };
        parsed.await.map(Self).inspect_err(|error| state.metrics.rejected(error))
    }
}

/// The whole body. One that is too large is refused by its declared length before a byte is read; one of undeclared
/// length is read up to the limit. A client that trickles is cut.
async fn read(request: Request<Body>, bounds: &Http) -> Result<Bytes, Error> {
    let limit = bounds.max_body_bytes;
    let declared =
        request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(Error::BodyTooLarge { limit });
    }
    let body = Limited::new(request.into_body(), limit).collect();
    match timeout(bounds.body_timeout, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Error::BodyTooLarge { limit }),
        Ok(Err(_)) => Err(Error::MalformedJson("the body ended early".to_owned())),
        Err(_) => Err(Error::BodyTimeout { limit: bounds.body_timeout }),
    }
}

/// `application/json` or `application/…+json`, with any parameters, and not compressed.
fn is_json(headers: &HeaderMap) -> bool {
    if headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return false;
    }
    let Some(Ok(value)) = headers.get(CONTENT_TYPE).map(|value| value.to_str()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let text = str::from_utf8(bytes).map_err(|error| Error::MalformedJson(error.to_string()))?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let Object(value) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        match error.inner().classify() {
            Category::Data => Error::WrongShape {
                path: if path == "." { BODY.to_owned() } else { path },
                message: shorten(&error.into_inner().to_string()),
            },
            _ => Error::MalformedJson(shorten(&error.into_inner().to_string())),
        }
    })?;
    deserializer.end().map_err(|error| Error::MalformedJson(error.to_string()))?;
    Ok(value)
}

fn shorten(message: &str) -> String {
    match message.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[allow(dead_code)]
        parameters: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        #[allow(dead_code)]
        n: Option<u32>,
    }

    fn error(body: &[u8]) -> Error {
        parse::<Outer>(body).unwrap_err()
    }

    #[test]
    fn the_path_of_the_bad_field_is_named() {
        for value in ["-1", "4294967296", "1.5", "\"1\"", "[]", "true", "1e9"] {
            let body = format!("{{\"parameters\":{{\"n\":{value}}}}}");
            assert!(
                matches!(error(body.as_bytes()), Error::WrongShape { path, .. } if path == "parameters.n"),
                "{value}"
            );
        }
        for body in ["[1,2]", "[{}]", "7", "null", "\"parameters\""] {
            let Error::WrongShape { path, message } = error(body.as_bytes()) else { panic!("{body}") };
            assert!(path == "body" && message.contains("expected an object"), "{body}: {message}");
        }
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        let bodies: [&[u8]; 7] = [
            b"",
            b"{",
            b"{}x",
            b"{\"parameters\":{\"n\":1e400}}",
            b"{\"a\":\"\xff\"}",
            b"nul",
            b"{\"a\":NaN}",
        ];
        for body in bodies {
            assert!(matches!(error(body), Error::MalformedJson(_)), "{:?}", String::from_utf8_lossy(body));
        }
        assert!(matches!(
            error("[".repeat(100_000).as_bytes()),
            Error::MalformedJson(_) | Error::WrongShape { .. }
        ));
    }

    #[test]
    fn unknown_fields_and_nulls_are_accepted() {
        parse::<Outer>(br#"{"parameters":null,"x":1}"#).unwrap();
        parse::<Outer>(br#"{"parameters":{"n":null,"y":[]}}"#).unwrap();
    }

    #[test]
    fn messages_are_bounded() {
        let body = format!("{{\"parameters\":\"{}\"}}", "é".repeat(10_000));
        assert!(error(body.as_bytes()).to_string().chars().count() < 400);
    }

    #[test]
    fn json_content_types() {
        for (value, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/vnd.api+json", true),
            ("text/json", false),
            ("text/plain", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]);
            assert_eq!(is_json(&headers), expected, "{value}");
        }
        assert!(!is_json(&HeaderMap::new()));
        for (coding, expected) in [("gzip", false), ("Identity", true), ("", false)] {
            let headers = [(CONTENT_TYPE, "application/json"), (CONTENT_ENCODING, coding)];
            let headers = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
            assert_eq!(is_json(&HeaderMap::from_iter(headers)), expected, "{coding}");
        }
    }
}
