//! Handlers that send what nobody asked for.

use std::io::Write;

use super::*;

/// Far more than is read of it, the socket's own buffers included.
const ENOUGH_BYTES: usize = 8 << 20;

#[test]
fn what_a_handler_sends_is_read_up_to_a_limit() {
    let stage = Stage::new(ANONYMOUS);
    let listener = stage.listen("socket");
    let _handed = stage.connect("socket").unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    page_handler::receive(&stream, 6 << 20).unwrap();
    stream.set_write_timeout(Some(MOMENT)).unwrap();
    let mut sent_bytes = 0;
    let stopped = loop {
        match stream.write(&[7; 1 << 16]) {
            Ok(bytes) => sent_bytes += bytes,
            Err(error) => break error,
        }
        assert!(sent_bytes < ENOUGH_BYTES, "all that is sent is read");
    };
    assert_eq!(stopped.kind(), io::ErrorKind::WouldBlock, "{stopped}");
    assert!(sent_bytes >= 1 << 20, "{sent_bytes}");
    stage.assert_nothing_told();
    drop(stream);
    let cause = stage.told();
    assert!(cause.contains("after it had sent what nobody asked for"), "{cause}");
}

#[test]
fn a_handler_that_sends_something_serves_all_the_same() {
    let stage = Stage::new(ANONYMOUS);
    let handler = stage.handler("socket", Mode::Flood);
    let handed = stage.connect("socket").unwrap();
    for page in 0..PAGES {
        assert_eq!(stage.read(page)[0], content(page));
    }
    stage.assert_nothing_told();
    drop(handed);
    assert_eq!(handler.join().unwrap().unwrap().pages, PAGES);
}
