//! Questions over HTTP.

use std::net::SocketAddr;

use anyhow::Result;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::{client::PATIENCE, namespace::Namespace};

/// An answer with its body.
pub type Answer = Response<String>;

/// Asks from a namespace. An answer is an answer whatever its code.
pub fn get(from: &Namespace, at: SocketAddr, path: &str) -> Result<Answer> {
    let request = Request::get(path).header("host", at.to_string());
    let request = request.body(Empty::<Bytes>::new())?;
    let exchange = async move {
        let stream = TcpStream::connect(at).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        connection.abort();
        anyhow::Ok((parts, String::from_utf8(body.to_vec())?))
    };
    let (parts, body) = from.run(async { timeout(PATIENCE, exchange).await })??;
    Ok(Response::from_parts(parts, body))
}
