//! What hostile, stuck or too many clients can do to the server, and what they cannot.

use super::*;
use crate::client::Response;

#[test]
fn half_a_body_then_a_close_costs_nothing() {
    let server = Server::start(Limits::default());
    for _ in 0..50 {
        let mut stream = server.connect();
        stream.write_all(b"PUT /boot-source HTTP/1.1\r\nContent-Length: 100\r\n\r\n{\"kernel").unwrap();
    }
    server.recovers();
}

#[test]
fn half_a_body_and_then_silence_is_refused() {
    let server = Server::start(Limits { body_wait_max: Duration::from_millis(30), ..Limits::default() });
    let answer = server.exchange(b"PUT /boot-source HTTP/1.1\r\nContent-Length: 100\r\n\r\n{\"kernel");
    assert!(answer.starts_with("HTTP/1.1 400 \r\n") && answer.contains("did not arrive within"), "{answer}");
}

#[test]
fn the_eleventh_connection_is_told_and_the_ten_go_on() {
    let server = Server::start(Limits::default());
    let mut ten: Vec<Stream> = (0..10)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(put("/entropy", "{}", "").as_bytes()).unwrap();
            read_answer(&mut stream, NO_CONTENT);
            stream
        })
        .collect();
    let expected = "HTTP/1.1 503 \r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n\
                    { \"error\": \"Too many open connections\" }";
    assert_eq!(read_all(&mut server.connect()), expected);
    let Response { status, body, .. } = server.client().call(&Request::GetVersion).unwrap();
    assert_eq!((status, body), (503, b"{ \"error\": \"Too many open connections\" }".to_vec()));
    for stream in &mut ten {
        stream.write_all(put("/entropy", "{}", "").as_bytes()).unwrap();
        read_answer(stream, NO_CONTENT);
    }
    drop(ten.pop());
    server.recovers();
}

#[test]
fn a_storm_of_connections_beyond_the_limit_leaves_the_server_alive() {
    let server = Server::start(Limits { connections_max: 2, ..Limits::default() });
    let storm: Vec<Stream> = (0..200).map(|_| server.connect()).collect();
    drop(storm);
    server.recovers();
}

#[test]
fn clients_that_do_nothing_lose_their_slots() {
    let limits = Limits { quiet_max: Duration::from_millis(30), connections_max: 3, ..Limits::default() };
    let server = Server::start(limits);
    let mut silent = server.connect();
    let mut half_a_head = server.connect();
    half_a_head.write_all(b"GET /version HTT").unwrap();
    let mut idle = server.connect();
    idle.write_all(put("/entropy", "{}", "").as_bytes()).unwrap();
    read_answer(&mut idle, NO_CONTENT);
    for stream in [&mut silent, &mut half_a_head, &mut idle] {
        assert!(is_closed(stream));
    }
    server.recovers();
}

#[test]
fn a_client_that_does_not_read_loses_its_slot() {
    let limits = Limits { quiet_max: Duration::from_millis(30), connections_max: 1, ..Limits::default() };
    let server = Server::start(limits);
    let mut deaf = server.connect();
    deaf.set_nonblocking(true).unwrap();
    let many = GET_VERSION.repeat(1000);
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the connection stayed open");
        match deaf.write(&many) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => break,
            Ok(_) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    server.recovers();
}

#[test]
fn a_request_under_way_is_not_quiet() {
    let server = Server::start(Limits { quiet_max: Duration::from_millis(10), ..Limits::default() });
    let mut slow = server.connect();
    slow.write_all(put("/actions", r#"{"action_type":"FlushMetrics"}"#, "").as_bytes()).unwrap();
    // Another connection goes quiet and is closed meanwhile: time enough has passed for the slow one, too.
    assert!(is_closed(&mut server.connect()));
    server.service.flush.notify_one();
    read_answer(&mut slow, NO_CONTENT);
}

#[test]
fn what_is_not_http_is_refused_and_the_server_goes_on() {
    let server = Server::start(Limits::default());
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n".to_vec(),
        b"PUT /entropy HTTP/1.1\r\nContent-Length: minus one\r\n\r\n".to_vec(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000)).into_bytes(),
        format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(500)).into_bytes(),
    ] {
        let mut stream = server.connect();
        // The server may close before it has read all of it.
        let _ = stream.write_all(&bytes);
        let answer = read_all(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    server.works();
}

#[test]
fn shutting_down_finishes_what_is_under_way_and_leaves_no_file() {
    let mut server = Server::start(Limits { shutdown_wait_max: PATIENCE, ..Limits::default() });
    let mut idle = server.connect();
    let mut slow = server.connect();
    slow.write_all(put("/actions", r#"{"action_type":"FlushMetrics"}"#, "").as_bytes()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(server.service.flush_begun.notified());
    drop(server.shutdown.take());
    assert!(is_closed(&mut idle));
    server.service.flush.notify_one();
    assert!(read_all(&mut slow).starts_with("HTTP/1.1 204 \r\n"));
    server.stop();
    assert!(!server.path.exists());
}

#[test]
fn shutting_down_does_not_wait_for_ever() {
    let mut server =
        Server::start(Limits { shutdown_wait_max: Duration::from_millis(10), ..Limits::default() });
    let mut slow = server.connect();
    slow.write_all(put("/actions", r#"{"action_type":"FlushMetrics"}"#, "").as_bytes()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(server.service.flush_begun.notified());
    server.stop();
    assert!(is_closed(&mut slow));
}
