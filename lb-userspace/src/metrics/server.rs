//! What kube-proxy serves on port 10249: `/metrics`, `/healthz`, `/proxyMode` and `/configz`.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::{
        StatusCode,
        header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    },
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::{Value, json};

use super::Metrics;

/// What `/proxyMode` says, where kube-proxy says `iptables`, `ipvs` or `nftables`.
pub const PROXY_MODE: &str = "ebpf";

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// The routes; `configuration` is what is in force.
pub fn router(metrics: Metrics, configuration: Value) -> Router {
    let configuration = Arc::new(json!({ "lb": configuration }));
    Router::new()
        .route("/metrics", get(measured))
        .with_state(metrics)
        .route("/healthz", get(async || plain("ok")))
        .route("/proxyMode", get(async || plain(PROXY_MODE)))
        .route(
            "/configz",
            get(async move || Json(Value::clone(&configuration))),
        )
}

async fn measured(State(metrics): State<Metrics>) -> Response {
    match metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn plain(text: &'static str) -> Response {
    let headers = [(CONTENT_TYPE, PLAIN), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, text).into_response()
}
