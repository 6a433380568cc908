//! `/healthz` and `/livez`.

use std::time::Instant;

use axum::{
    Router,
    extract::State,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    },
    response::{IntoResponse, Response},
    routing::any,
};
use jiff::Timestamp;
use tokio::sync::watch;

use super::Progress;
use crate::metrics::Metrics;

/// The routes of the health server, on what the agent last said of its progress.
pub fn router(progress: watch::Receiver<Progress>, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", any(healthz))
        .route("/livez", any(livez))
        .with_state((progress, metrics))
}

type Asked = State<(watch::Receiver<Progress>, Metrics)>;

async fn healthz(State((progress, metrics)): Asked) -> Response {
    let (code, response) = answer(&progress, true);
    metrics.answered_healthz(code.as_u16());
    response
}

async fn livez(State((progress, metrics)): Asked) -> Response {
    let (code, response) = answer(&progress, false);
    metrics.answered_livez(code.as_u16());
    response
}

fn answer(progress: &watch::Receiver<Progress>, of_node: bool) -> (StatusCode, Response) {
    let report = progress
        .borrow()
        .report(of_node, Instant::now(), Timestamp::now());
    let code = code(report.healthy);
    (code, json(code, serde_json::to_string(&report)))
}

/// 200 or 503.
pub(super) fn code(healthy: bool) -> StatusCode {
    if healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// An answer that no browser takes for anything but JSON.
pub(super) fn json(code: StatusCode, body: serde_json::Result<String>) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    match body {
        Ok(body) => (code, headers, body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
