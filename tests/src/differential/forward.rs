//! A server of one namespace, to be reached in another.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::sandbox::Namespace;

/// Takes TCP connections in one namespace and goes on with them in another, to the same address and
/// port. Ends when it is dropped.
pub struct Forwarder(JoinHandle<()>);

impl Forwarder {
    pub fn start(address: SocketAddr, at: &Namespace, to: &Arc<Namespace>) -> Result<Self> {
        let listener = at
            .run(async move { TcpListener::bind(address).await })
            .with_context(|| format!("listen on {address}"))?;
        let to = Arc::clone(to);
        Ok(Self(at.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(join(near, address, Arc::clone(&to)));
            }
        })))
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Carries one connection, for as long as both ends want it.
async fn join(mut near: TcpStream, address: SocketAddr, to: Arc<Namespace>) {
    // A socket belongs to the namespace that it was opened in, wherever it is used.
    let opened = to.spawn(async move { TcpStream::connect(address).await?.into_std() });
    if let Ok(Ok(far)) = opened.await
        && let Ok(mut far) = TcpStream::from_std(far)
    {
        // An error ends the connection, which both ends see.
        let _ = copy_bidirectional(&mut near, &mut far).await;
    }
}
