//! What a client gets when every slot is taken.

use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Clients being turned away at a time; beyond this they are closed without a word.
pub(super) const AT_ONCE_MAX: usize = 16;

/// How long a client has to take its answer.
const LINGER: Duration = Duration::from_secs(1);

/// The whole answer. It is sent before anything is read: a client need not send a request to learn that it cannot.
const ANSWER: &[u8] = b"HTTP/1.1 503 \r\n\
    Server: Firecracker API\r\n\
    Connection: close\r\n\
    Content-Length: 40\r\n\
    \r\n\
    { \"error\": \"Too many open connections\" }";

/// Says that there is no room, and closes.
///
/// What the client sends is read and dropped until it closes: closing a UNIX socket with bytes unread makes the
/// peer's next read fail, and the answer may be lost on it.
pub(super) async fn run(mut stream: UnixStream) {
    let farewell = async {
        stream.write_all(ANSWER).await?;
        stream.shutdown().await?;
        let mut unread = [0; 1024];
        while stream.read(&mut unread).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whether it arrived is the client's affair.
    let _ = tokio::time::timeout(LINGER, farewell).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_that_of_the_body() {
        let text = std::str::from_utf8(ANSWER).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{text}");
    }
}
