//! The bytes on the wire, and the bodies that are taken and refused.

use super::*;

#[test]
fn the_bytes_of_an_answer_without_a_body() {
    let server = Server::start(Limits::default());
    let mut stream = server.connect();
    for _ in 0..3 {
        stream.write_all(put("/entropy", "{}", "").as_bytes()).unwrap();
        read_answer(&mut stream, NO_CONTENT);
    }
}

#[test]
fn the_bytes_of_an_answer_with_a_body() {
    let server = Server::start(Limits::default());
    let mut stream = server.connect();
    stream.write_all(GET_VERSION).unwrap();
    read_answer(
        &mut stream,
        "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n\
         Content-Length: 32\r\n\r\n{\"firecracker_version\":\"1.17.0\"}",
    );
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let body = r#"{"app_name":"Firecracker","id":"i-1","state":"Not started","vmm_version":"1.17.0"}"#;
    read_answer(
        &mut stream,
        &format!(
            "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    );
}

#[test]
fn the_bytes_of_a_refusal_and_of_a_deprecation() {
    let server = Server::start(Limits::default());
    let mut stream = server.connect();
    stream.write_all(b"PUT /entropy HTTP/1.1\r\n\r\n").unwrap();
    read_answer(
        &mut stream,
        "HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n\
         Content-Length: 38\r\n\r\n{\"fault_message\":\"Empty PUT request.\"}",
    );
    let body = r#"{"vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "T2"}"#;
    stream.write_all(put("/machine-config", body, "").as_bytes()).unwrap();
    read_answer(
        &mut stream,
        "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nDeprecation: true\r\n\r\n",
    );
}

#[test]
fn metrics_for_scraping_are_text() {
    let server = Server::start(Limits::default());
    let answer = server.exchange(b"GET /metrics/prometheus HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!(answer.contains("Content-Type: application/openmetrics-text; version=1.0.0"), "{answer}");
    assert!(answer.contains("Connection: close\r\n") && answer.ends_with("\r\n\r\n# EOF\n"), "{answer}");
}

#[test]
fn http_1_0_is_served() {
    let server = Server::start(Limits::default());
    let answer = server.exchange(b"GET /version HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.0 200 \r\n") && answer.ends_with("\"1.17.0\"}"), "{answer}");
}

#[test]
fn a_client_that_asks_first_is_told_to_continue() {
    let server = Server::start(Limits::default());
    let mut stream = server.connect();
    stream.write_all(b"PUT /entropy HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").unwrap();
    read_answer(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{}").unwrap();
    read_answer(&mut stream, NO_CONTENT);
}

#[test]
fn what_the_service_refuses_reaches_the_client() {
    let server = Server::start(Limits::default());
    let response = server.client().call(&Request::PutAction(Action::SendCtrlAltDel)).unwrap();
    assert_eq!(response.status, 400);
    assert_eq!(
        response.fault_message(),
        "The requested operation is not supported before starting the microVM."
    );
}

#[test]
fn an_unknown_field_and_a_wrong_type_are_refused_and_the_connection_goes_on() {
    let server = Server::start(Limits::default());
    let mut stream = server.connect();
    for (body, text) in [
        (r#"{"kernel_image_path": "k", "color": 1}"#, "unknown field `color`"),
        (r#"{"kernel_image_path": 1}"#, "invalid type: integer `1`"),
    ] {
        stream.write_all(put("/boot-source", body, "").as_bytes()).unwrap();
        let mut answer = vec![0; 1024];
        let count = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 400 \r\n") && answer.contains(text), "{answer}");
    }
    stream.write_all(put("/entropy", "{}", "").as_bytes()).unwrap();
    read_answer(&mut stream, NO_CONTENT);
}

#[test]
fn a_body_may_be_as_long_as_the_limit_and_no_longer() {
    let server = Server::start(Limits { payload_bytes_max: 100, ..Limits::default() });
    let of_length = |length: usize| format!("{{}}{}", " ".repeat(length - 2));
    let send =
        |length: usize| server.client().raw("PUT", "/entropy", Some(of_length(length).as_bytes())).unwrap();
    assert_eq!(send(100).status, 204);
    let refused = send(101);
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.fault_message(),
        "Request payload with size 101 is larger than the limit of 100 allowed by server."
    );
    server.works();
}

#[test]
fn a_body_far_over_the_limit_is_refused_before_it_is_sent() {
    let server = Server::start(Limits::default());
    for header in ["Expect: 100-continue\r\nContent-Length: 60000", "Content-Length: 99999999999"] {
        let answer = server.exchange(format!("PUT /entropy HTTP/1.1\r\n{header}\r\n\r\n").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 \r\n"), "{answer}");
        assert!(answer.contains("is larger than the limit of 51200"), "{answer}");
    }
    server.works();
}

#[test]
fn a_chunked_body_has_the_same_limit() {
    let server = Server::start(Limits { payload_bytes_max: 100, ..Limits::default() });
    let chunked = |body: &str| {
        let head = "PUT /entropy HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        server.exchange(format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes())
    };
    assert!(chunked("{}").starts_with("HTTP/1.1 204 \r\n"));
    assert!(chunked(&" ".repeat(200)).contains("Request payload with size 200"));
}
