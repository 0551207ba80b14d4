//! The thread that takes what comes from outside: signals that ask for an end, and the API's requests.
//!
//! It is the first to be there and the last to go, so that at no time a signal ends the process without the socket
//! being removed and the terminal given back.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use api::server::{self, BoundSocket, Limits};
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::machine::message::Notifier;
use crate::process::{self, EXIT_GENERIC};
use crate::service::DriverService;
use crate::signals;

/// How long an end that was asked for may take. Each of its steps has a shorter limit of its own; this is for a driver
/// that is stuck itself.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// What the thread is given once there is an API to answer on.
struct Serving {
    listener: UnixListener,
    service: DriverService,
    limits: Limits,
}

/// The front thread. Dropping it finishes what is being answered, and ends it.
pub(crate) struct Front {
    runtime: Handle,
    stop: watch::Sender<bool>,
    serving: mpsc::Sender<Serving>,
    thread: Option<JoinHandle<()>>,
    /// Removed from the file system after the last answer.
    socket: Option<BoundSocket>,
}

impl Front {
    /// Starts the thread; from then on signals are messages to the driver.
    ///
    /// # Errors
    ///
    /// When the host gives no thread, or does not let signals be handled.
    pub(crate) fn start(notifier: &Notifier) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = watch::channel(false);
        let (serving, to_serve) = mpsc::channel(1);
        let (ready, is_ready) = sync_channel(1);
        let notifier = notifier.clone();
        let thread = thread::Builder::new().name("api".to_owned()).spawn(move || {
            // Clients wait. Where the host does not let us, they do so behind vCPUs that do not.
            let _ = memory::threads::be_urgent();
            let unblocked = signals::unblock_ends();
            runtime.block_on(async move {
                let watched = unblocked.and_then(|()| watch_signals(&notifier));
                let is_watched = watched.is_ok();
                // Whoever started this thread waits for the answer.
                let _ = ready.send(watched);
                if is_watched {
                    answer(to_serve, stopped).await;
                }
            });
        })?;
        is_ready.recv().map_err(|_| io::Error::other("the API thread ended at once"))??;
        Ok(Self { runtime: handle, stop, serving, thread: Some(thread), socket: None })
    }

    /// Answers requests on `socket`.
    ///
    /// # Errors
    ///
    /// When the socket cannot be listened on.
    pub(crate) fn serve(
        &mut self,
        socket: BoundSocket,
        service: DriverService,
        limits: Limits,
    ) -> io::Result<()> {
        let listener = {
            let _inside = self.runtime.enter();
            socket.listener()?
        };
        self.socket = Some(socket);
        let serving = Serving { listener, service, limits };
        self.serving.try_send(serving).map_err(|_| io::Error::other("the API is answered on one socket only"))
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // An error says that the thread has ended already.
        let _ = self.stop.send(true);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the API thread panicked");
        }
    }
}

/// Waits for a socket and answers on it, until told to stop; what is being answered then is finished first.
async fn answer(mut to_serve: mpsc::Receiver<Serving>, stopped: watch::Receiver<bool>) {
    let given = tokio::select! {
        given = to_serve.recv() => given,
        () = wait_for(stopped.clone()) => None,
    };
    if let Some(Serving { listener, service, limits }) = given {
        server::serve(listener, Arc::new(service), limits, wait_for(stopped)).await;
    }
}

async fn wait_for(mut stopped: watch::Receiver<bool>) {
    // An error says that the other end is gone, which means the same.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Turns signals that ask for an end into a message.
fn watch_signals(notifier: &Notifier) -> io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let mut signals = signal(kind)?;
        let notifier = notifier.clone();
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                notifier.quit();
                tokio::time::sleep(END_TIMEOUT).await;
                process::abandon(EXIT_GENERIC, "the microVM does not end, so the process ends without it");
            }
        });
    }
    Ok(())
}
