//! HTTP/1.1 over a UNIX socket, for few clients that may be slow, stuck or hostile.
//!
//! ```text
//!   accept ──▶ a free slot? ──▶ connection: one request at a time ──▶ Service
//!                  │ no                       │ quiet for too long, gone, or done
//!                  ▼                          ▼
//!           503 and close                the slot is free
//! ```
//!
//! The bytes are those clients of Firecracker know: no reason phrase, no date, `Server: Firecracker API`, and content
//! headers only with a body.
//!
//! Invariants:
//!
//! - At most [`Limits::connections_max`] requests are under way, each of at most [`Limits::payload_bytes_max`].
//! - No client keeps a slot by doing nothing: a connection on which nothing is being done is closed after
//!   [`Limits::quiet_max`], a body that does not arrive within [`Limits::body_wait_max`] is refused.
//! - What a client does on its connection never ends another's, or the server.

mod connection;
mod refusal;
mod socket;

pub use socket::{BindError, BoundSocket, bind};

use crate::Service;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};

/// How long to wait before accepting again when the process is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How often to look for connections that just ended before a new one is refused.
const REAP_ROUNDS: usize = 3;

/// Bounds on what clients can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest request body, in bytes.
    pub payload_bytes_max: usize,
    /// Connections served at a time; one more is told so and closed.
    pub connections_max: usize,
    /// How long a connection may go without a request being done on it.
    pub quiet_max: Duration,
    /// How long a request's body may take to arrive, once its head has.
    pub body_wait_max: Duration,
    /// How long requests under way are waited for when the server shuts down.
    pub shutdown_wait_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_bytes_max: 51_200,
            connections_max: 10,
            quiet_max: Duration::from_secs(60),
            body_wait_max: Duration::from_secs(10),
            shutdown_wait_max: Duration::from_secs(1),
        }
    }
}

/// Serves until `shutdown` resolves; then finishes what is under way, and returns.
///
/// Meant for a current-thread runtime with I/O and time enabled.
pub async fn serve<S: Service>(
    listener: UnixListener,
    service: Arc<S>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let mut clients = Clients::new(service, limits);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => clients.admit(stream).await,
                Err(error) => {
                    tracing::error!(%error, "the API socket cannot accept a connection; trying again");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
            () = clients.reap(), if clients.any() => {}
        }
    }
    drop(listener);
    clients.finish().await;
}

/// The connections that are open, and those being turned away.
struct Clients<S> {
    service: Arc<S>,
    limits: Limits,
    served: JoinSet<()>,
    refused: JoinSet<()>,
    closing: watch::Sender<bool>,
}

impl<S: Service> Clients<S> {
    fn new(service: Arc<S>, limits: Limits) -> Self {
        Self {
            service,
            limits,
            served: JoinSet::new(),
            refused: JoinSet::new(),
            closing: watch::Sender::new(false),
        }
    }

    /// Gives a new connection a slot, or turns it away.
    async fn admit(&mut self, stream: UnixStream) {
        while self.refused.try_join_next().is_some() {}
        if self.has_room().await {
            let closing = self.closing.subscribe();
            self.served.spawn(connection::run(stream, self.service.clone(), self.limits, closing));
        } else if self.refused.len() < refusal::AT_ONCE_MAX {
            tracing::warn!(
                connections_max = self.limits.connections_max,
                "refusing an API connection: all are taken"
            );
            self.refused.spawn(refusal::run(stream));
        }
    }

    /// Whether a slot is free.
    ///
    /// A client that closes one connection and opens another may be seen doing the latter first. Yielding lets
    /// the runtime look at the sockets again, so that the closed connection ends before it is counted.
    async fn has_room(&mut self) -> bool {
        for _ in 0..REAP_ROUNDS {
            while self.served.try_join_next().is_some() {}
            if self.served.len() < self.limits.connections_max {
                return true;
            }
            yield_now().await;
        }
        false
    }

    fn any(&self) -> bool {
        !self.served.is_empty() || !self.refused.is_empty()
    }

    /// Waits for one connection to end.
    async fn reap(&mut self) {
        tokio::select! {
            Some(_) = self.served.join_next() => {}
            Some(_) = self.refused.join_next() => {}
        }
    }

    /// Lets requests under way finish, for as long as the limits allow; dropping the sets ends the rest.
    async fn finish(mut self) {
        self.closing.send_replace(true);
        let all = async { while self.served.join_next().await.is_some() {} };
        if tokio::time::timeout(self.limits.shutdown_wait_max, all).await.is_err() {
            tracing::warn!(
                "an API request was still under way when the server shut down; its answer is lost"
            );
        }
    }
}

#[cfg(test)]
mod tests;
