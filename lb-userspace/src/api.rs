//! The agent's unix socket: JSON over HTTP, for root only.

use std::{
    fs::{self, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use axum::{Json, Router, extract::State, http::StatusCode, routing};
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    cni,
    drops::Drop,
    explain::{Explanation, Question},
    names::Names,
    policies::Policy,
    status::Status,
};

/// How long a client waits: the agent may be in the middle of a large change.
const PATIENCE: Duration = Duration::from_secs(30);

/// A question to the task that owns the state, with the way back for its answer.
#[derive(Debug)]
pub enum Query {
    Status(oneshot::Sender<Status>),
    Names(oneshot::Sender<Names>),
    Drops(oneshot::Sender<Vec<Drop>>),
    Policies(oneshot::Sender<Vec<Policy>>),
    Explain(Question, oneshot::Sender<Result<Explanation, String>>),
    /// What a container runtime asks for; answered when it is done, or why it is not.
    Attachment(cni::Request, oneshot::Sender<Result<(), String>>),
}

/// Takes the socket over from an agent that is gone; an error where one still listens.
///
/// The socket stays when the agent ends: nobody answers then, and the next agent replaces it.
pub async fn bind(socket: &Path) -> Result<UnixListener> {
    if let Some(stream) = connect(socket).await? {
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let pid = pid.map_or_else(String::new, |pid| format!(" as pid {pid}"));
        bail!("already running{pid}: it listens on {}", socket.display());
    }
    let directory = socket.parent().context("the socket has no directory")?;
    if !directory.exists() {
        fs::create_dir_all(directory)
            .and_then(|()| fs::set_permissions(directory, Permissions::from_mode(0o700)))
            .with_context(|| format!("make the directory {}", directory.display()))?;
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).context(format!("replace the stale socket {}", socket.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    fs::set_permissions(socket, Permissions::from_mode(0o600))
        .with_context(|| format!("keep others away from {}", socket.display()))?;
    Ok(listener)
}

/// Serves until it is dropped, asking the owner of the state.
pub async fn serve(listener: UnixListener, queries: mpsc::Sender<Query>) -> io::Result<()> {
    let router = Router::new()
        .route(
            "/status",
            routing::get(async |state| ask(state, Query::Status).await),
        )
        .route(
            "/names",
            routing::get(async |state| ask(state, Query::Names).await),
        )
        .route(
            "/drops",
            routing::get(async |state| ask(state, Query::Drops).await),
        )
        .route(
            "/policies",
            routing::get(async |state| ask(state, Query::Policies).await),
        )
        .route(
            "/explain",
            routing::post(async |state, Json(question)| {
                ask(state, |answer| Query::Explain(question, answer)).await
            }),
        )
        .route(
            "/attachments",
            routing::post(async |state, Json(request)| {
                ask(state, |answer| Query::Attachment(request, answer)).await
            }),
        )
        .with_state(queries);
    axum::serve(listener, router).await
}

async fn ask<T>(
    State(queries): State<mpsc::Sender<Query>>,
    query: impl FnOnce(oneshot::Sender<T>) -> Query,
) -> Result<Json<T>, (StatusCode, &'static str)> {
    let gone = |_| (StatusCode::SERVICE_UNAVAILABLE, "the agent is about to end");
    let (answer, answered) = oneshot::channel();
    queries.send(query(answer)).await.map_err(|_| gone(()))?;
    answered.await.map(Json).map_err(|_| gone(()))
}

/// The running agent's `Status`; `None` where no agent runs.
pub async fn status(socket: &Path) -> Result<Option<Status>> {
    fetch(socket, "/status").await
}

/// The running agent's `Names`; `None` where no agent runs.
pub async fn names(socket: &Path) -> Result<Option<Names>> {
    fetch(socket, "/names").await
}

/// What was dropped lately; `None` where no agent runs.
pub async fn drops(socket: &Path) -> Result<Option<Vec<Drop>>> {
    fetch(socket, "/drops").await
}

/// The policies, with the pods of this node that they select; `None` where no agent runs.
pub async fn policies(socket: &Path) -> Result<Option<Vec<Policy>>> {
    fetch(socket, "/policies").await
}

/// What becomes of a connection, or why that cannot be said; `None` where no agent runs.
pub async fn explain(
    socket: &Path,
    question: &Question,
) -> Result<Option<Result<Explanation, String>>> {
    post(socket, "/explain", question).await
}

/// What the running agent answers a container runtime; `None` where no agent runs.
pub async fn attachment(
    socket: &Path,
    request: &cni::Request,
) -> Result<Option<Result<(), String>>> {
    post(socket, "/attachments", request).await
}

async fn fetch<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<Option<T>> {
    let request = Request::get(path).body(Full::default())?;
    converse(socket, request).await
}

async fn post<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
) -> Result<Option<T>> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(serde_json::to_vec(body)?))?;
    converse(socket, request).await
}

async fn converse<T: DeserializeOwned>(
    socket: &Path,
    request: Request<Full<Bytes>>,
) -> Result<Option<T>> {
    let Some(stream) = connect(socket).await? else {
        return Ok(None);
    };
    let answer = timeout(PATIENCE, exchange(stream, request)).await;
    let body = answer.context("the agent does not answer")??;
    serde_json::from_slice(&body)
        .context("understand the agent's answer")
        .map(Some)
}

async fn exchange(stream: UnixStream, mut request: Request<Full<Bytes>>) -> Result<Bytes> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let headers = request.headers_mut();
    headers.insert(header::HOST, header::HeaderValue::from_static("lb"));
    let answer = sender
        .send_request(request)
        .await
        .context("ask the agent")?;
    let status = answer.status();
    let body = answer.into_body().collect().await;
    let body = body.context("read the agent's answer")?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    ensure!(status.is_success(), "the agent answers {status}: {text}");
    Ok(body)
}

async fn connect(socket: &Path) -> Result<Option<UnixStream>> {
    match UnixStream::connect(socket).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("connect to {}", socket.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::process;

    use crate::status::Agent;

    use super::*;

    fn away() -> Status {
        Status {
            agent: Agent::Away { since: None },
            tables_at: "/t".into(),
            interfaces: Vec::new(),
            services: Vec::new(),
            problems: Vec::new(),
            tables: Vec::new(),
            counters: Default::default(),
        }
    }

    async fn answer(mut queries: mpsc::Receiver<Query>) {
        while let Some(Query::Status(answer)) = queries.recv().await {
            answer.send(away()).expect("the server waits");
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    }

    #[tokio::test]
    async fn the_owner_of_the_state_answers() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("run/lb.sock");
        assert_eq!(status(&socket).await?, None, "nothing is there");

        let listener = bind(&socket).await?;
        assert_eq!(mode(&socket), 0o600);
        assert_eq!(mode(&directory.path().join("run")), 0o700);
        let (queries, asked) = mpsc::channel(1);
        let server = tokio::spawn(serve(listener, queries));
        let owner = tokio::spawn(answer(asked));
        assert_eq!(status(&socket).await?, Some(away()));

        let error = bind(&socket).await.expect_err("taken").to_string();
        assert!(
            error.starts_with(&format!("already running as pid {}:", process::id())),
            "{error}"
        );

        owner.abort();
        let error = status(&socket)
            .await
            .expect_err("nobody answers")
            .to_string();
        assert!(error.contains("the agent is about to end"), "{error}");

        server.abort();
        let _ = server.await;
        assert_eq!(status(&socket).await?, None, "the socket is stale");
        bind(&socket).await?;
        Ok(())
    }

    #[tokio::test]
    async fn what_is_no_socket_is_not_replaced() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("a-directory");
        fs::create_dir(&socket)?;
        assert!(bind(&socket).await.is_err());
        Ok(())
    }
}
