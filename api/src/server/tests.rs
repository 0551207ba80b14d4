//! The server over real sockets: the harness. The tests are about the bytes on the wire, and about clients that are
//! hostile, stuck or simply too many.

mod clients;
mod wire;

use super::*;
use crate::client::Client;
use crate::types::{Action, InstanceInfo, InstanceState, MachineConfig};
use crate::{Fault, Reply, Request};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream as Stream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Instant;
use tempfile::TempDir;
use tokio::sync::{Notify, oneshot};

/// How long a test waits for something that has to happen.
const PATIENCE: Duration = Duration::from_secs(20);
const GET_VERSION: &[u8] = b"GET /version HTTP/1.1\r\n\r\n";
const NO_CONTENT: &str = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";

/// Answers without a VM. `FlushMetrics` takes until the test lets it go on.
#[derive(Default)]
struct Stub {
    flush: Notify,
    flush_begun: Notify,
}

impl Service for Stub {
    async fn call(&self, request: Request) -> Result<Reply, Fault> {
        match request {
            Request::GetInstanceInfo => Ok(Reply::InstanceInfo(InstanceInfo {
                failure: None,
                handler_failure: None,
                app_name: "Firecracker".to_owned(),
                id: "i-1".to_owned(),
                state: InstanceState::NotStarted,
                vmm_version: "1.17.0".to_owned(),
            })),
            Request::GetVersion => Ok(Reply::Version("1.17.0".to_owned())),
            Request::GetMachineConfig => Ok(Reply::MachineConfig(MachineConfig::default())),
            Request::GetPrometheus => Ok(Reply::Prometheus("# EOF\n".to_owned())),
            Request::PutAction(Action::FlushMetrics) => {
                self.flush_begun.notify_one();
                self.flush.notified().await;
                Ok(Reply::Empty)
            }
            Request::PutAction(Action::SendCtrlAltDel) => Err(Fault::bad_request(
                "The requested operation is not supported before starting the microVM.",
            )),
            _ => Ok(Reply::Empty),
        }
    }
}

/// A server on its own thread, as the VMM runs it.
struct Server {
    _folder: TempDir,
    path: PathBuf,
    service: Arc<Stub>,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let socket = bind(&path).unwrap();
        let service = Arc::new(Stub::default());
        let (shutdown, stopped) = oneshot::channel();
        let served = service.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = socket.listener().unwrap();
                serve(listener, served, limits, async { stopped.await.unwrap_or_default() }).await;
            });
        });
        Self { _folder: folder, path, service, shutdown: Some(shutdown), thread: Some(thread) }
    }

    fn client(&self) -> Client {
        Client::new(&self.path).with_timeout(PATIENCE)
    }

    fn connect(&self) -> Stream {
        let stream = Stream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes and gives back all that comes until the server closes.
    fn exchange(&self, message: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(message).unwrap();
        read_all(&mut stream)
    }

    fn works(&self) {
        assert_eq!(self.client().call(&Request::GetVersion).unwrap().status, 200);
    }

    /// Waits until the server has a slot free.
    fn recovers(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.client().call(&Request::GetVersion).unwrap().status != 200 {
            assert!(Instant::now() < deadline, "no slot became free");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(&mut self) {
        drop(self.shutdown.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn read_all(stream: &mut Stream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        // What was sent before the server closed with our bytes unread has arrived all the same.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}"),
    }
    String::from_utf8(bytes).unwrap()
}

fn read_answer(stream: &mut Stream, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
}

fn put(path: &str, body: &str, header: &str) -> String {
    format!("PUT {path} HTTP/1.1\r\n{header}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn is_closed(stream: &mut Stream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}
