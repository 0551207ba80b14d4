//! The other end of the wire: a blocking client, for the command line and for tests.
//!
//! One connection per call, closed afterwards: calls are rare, and the server has few slots.

use crate::Request;
use crate::types::FaultBody;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most headers an answer may have.
const HEADERS_MAX: usize = 32;
/// Time for one call, unless [`Client::with_timeout`] says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where an API is served, and how long to wait for it.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
    timeout: Duration,
}

/// An answer, whatever its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status code.
    pub status: u16,
    /// Whether the request used something the contract is about to drop.
    pub deprecated: bool,
    /// The body; empty if there is none.
    pub body: Vec<u8>,
}

impl Response {
    /// Whether the request was done.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as one of the contract's types.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }

    /// Why the request was refused: the fault message, or else the body as it is.
    pub fn fault_message(&self) -> String {
        match self.json::<FaultBody>() {
            Ok(fault) => fault.fault_message,
            Err(_) => String::from_utf8_lossy(&self.body).into_owned(),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing was ever served there.
    #[error("there is no socket at {}: start the VMM with --api-sock {}, or name its socket here", path.display(), path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The server is gone.
    #[error("nobody listens on {}: the process that made it is gone; start the VMM again", path.display())]
    NobodyListens {
        /// The path.
        path: PathBuf,
    },
    /// The socket belongs to someone else.
    #[error("no permission to use {}: become its owner, or run as root", path.display())]
    Permission {
        /// The path.
        path: PathBuf,
    },
    /// No answer in time.
    #[error("no answer from {} within {timeout:?}: see the VMM's log, or allow more time", path.display())]
    Timeout {
        /// The path.
        path: PathBuf,
        /// How long was waited.
        timeout: Duration,
    },
    /// The connection broke.
    #[error("the connection to {} failed: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// How it broke.
        source: io::Error,
    },
    /// What came back is not an answer.
    #[error("{} answered something that is not HTTP ({reason}): is it the API socket?", path.display())]
    NotHttp {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Client {
    /// A client for the API on `path`. Connects at each call, not now.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), timeout: TIMEOUT }
    }

    /// The same with another time limit for a whole call.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Where the API is served.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a request and waits for its answer.
    pub fn call(&self, request: &Request) -> Result<Response, ClientError> {
        let (method, path, body) = request.render();
        self.raw(method.as_str(), &path, body.as_deref())
    }

    /// Sends any method, path and body, right or wrong.
    pub fn raw(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<Response, ClientError> {
        let mut message =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n").into_bytes();
        if let Some(body) = body {
            let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
            message.extend_from_slice(headers.as_bytes());
            message.extend_from_slice(body);
        } else {
            message.extend_from_slice(b"\r\n");
        }
        let mut stream = UnixStream::connect(&self.path).map_err(|error| self.connect_error(error))?;
        self.exchange(&mut stream, &message)
    }

    fn exchange(&self, stream: &mut UnixStream, message: &[u8]) -> Result<Response, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let io = |error| self.io_error(error);
        stream.set_write_timeout(Some(self.timeout)).map_err(io)?;
        match stream.write_all(message) {
            // A server that is full answers and closes without reading; its answer is there to be read.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(io(error)),
            _ => {}
        }
        let mut bytes = Vec::new();
        loop {
            if let Some(response) = parse(&bytes).map_err(|reason| self.not_http(reason))? {
                return Ok(response);
            }
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(self.not_http(format!("longer than {ANSWER_BYTES_MAX} bytes")));
            }
            if read_more(stream, &mut bytes, deadline).map_err(io)? == 0 {
                return Err(self.not_http(format!("it ended after {} bytes", bytes.len())));
            }
        }
    }

    fn connect_error(&self, error: io::Error) -> ClientError {
        let path = self.path.clone();
        match error.kind() {
            ErrorKind::NotFound => ClientError::NoSocket { path },
            ErrorKind::ConnectionRefused => ClientError::NobodyListens { path },
            ErrorKind::PermissionDenied => ClientError::Permission { path },
            _ => ClientError::Io { path, source: error },
        }
    }

    fn io_error(&self, source: io::Error) -> ClientError {
        let path = self.path.clone();
        match source.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                ClientError::Timeout { path, timeout: self.timeout }
            }
            _ => ClientError::Io { path, source },
        }
    }

    fn not_http(&self, reason: String) -> ClientError {
        ClientError::NotHttp { path: self.path.clone(), reason }
    }
}

/// Appends what arrives before `deadline`; 0 means the end.
fn read_more(stream: &mut UnixStream, bytes: &mut Vec<u8>, deadline: Instant) -> io::Result<usize> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    let mut chunk = [0; 16 * 1024];
    let count = stream.read(&mut chunk)?;
    bytes.extend_from_slice(&chunk[..count]);
    Ok(count)
}

/// Reads an answer, if all of it is there; `Content-Length` says what all is, as in the contract.
fn parse(bytes: &[u8]) -> Result<Option<Response>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let head_len = match head.parse(bytes).map_err(|error| error.to_string())? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(len) => len,
    };
    let header = |name: &str| {
        let header = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        header.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let body_len = match header("content-length") {
        None => 0,
        Some(text) => text.parse::<usize>().map_err(|_| format!("its Content-Length is {text:?}"))?,
    };
    if body_len > ANSWER_BYTES_MAX {
        return Err(format!("its Content-Length is {body_len}, over {ANSWER_BYTES_MAX}"));
    }
    let Some(body) = bytes[head_len..].get(..body_len) else {
        return Ok(None);
    };
    let status = head.code.ok_or("it has no status")?;
    Ok(Some(Response { status, deprecated: header("deprecation") == Some("true"), body: body.to_vec() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::net::UnixListener;
    use std::thread;
    use tempfile::tempdir;

    /// Calls a server that answers with `answer` whatever it is asked.
    fn call(answer: &'static [u8], timeout: Duration) -> Result<Response, ClientError> {
        let folder = tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(answer).unwrap();
            if answer.is_empty() {
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        let result = Client::new(&path).with_timeout(timeout).call(&Request::GetVersion);
        server.join().unwrap();
        result
    }

    #[test]
    fn errors_name_the_next_step() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let error = Client::new(&path).call(&Request::GetVersion).unwrap_err();
        assert!(error.to_string().contains("start the VMM with --api-sock /"), "{error}");
        drop(UnixListener::bind(&path).unwrap());
        let error = Client::new(&path).call(&Request::GetVersion).unwrap_err();
        assert!(error.to_string().contains("start the VMM again"), "{error}");
    }

    #[test]
    fn an_answer_of_another_server_is_read() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nDeprecation: true\r\n\r\n{}and more";
        let response = call(answer, TIMEOUT).unwrap();
        assert_eq!(response, Response { status: 200, deprecated: true, body: b"{}".to_vec() });
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for answer in [&b"SSH-2.0-nonsense\r\n"[..], b"HTTP/1.1 200 \r\nContent-Length: 9\r\n\r\nhalf"] {
            assert!(matches!(
                call(answer, TIMEOUT),
                Err(ClientError::NotHttp { .. } | ClientError::Io { .. })
            ));
        }
    }

    #[test]
    fn silence_ends_in_a_timeout() {
        let error = call(b"", Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
        }
    }
}
