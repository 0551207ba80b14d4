//! Sockets with nobody behind them, and handlers that do not get as far as a page.

use memory::uffd::RegisterError;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use super::*;

fn text(stage: &Stage, name: &str) -> String {
    stage.connect(name).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_connected_to_is_refused_as_clients_know_it() {
    let stage = Stage::new(ANONYMOUS);
    let prefix = "Failed to connect to UDS Unix stream: ";
    assert_eq!(text(&stage, "none"), format!("{prefix}No such file or directory (os error 2)"));
    drop(stage.listen("left"));
    assert_eq!(text(&stage, "left"), format!("{prefix}Connection refused (os error 111)"));
    assert_eq!(text(&stage, "memory"), format!("{prefix}Connection refused (os error 111)"));
    assert_eq!(text(&stage, &"long".repeat(50)), format!("{prefix}File name too long (os error 36)"));
    // Nothing is left of it: the same memory can be handed to somebody who is there.
    let handler = stage.handler("socket", Mode::Good);
    let handed = stage.connect("socket").unwrap();
    assert_eq!(stage.read(1)[0], content(1));
    drop(handed);
    handler.join().unwrap().unwrap();
}

#[test]
fn a_queue_that_is_full_is_not_waited_for_without_end() {
    let stage = Stage::new(ANONYMOUS);
    let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    bind(&listener, &SocketAddrUnix::new(stage.path("socket")).unwrap()).unwrap();
    listen(&listener, 0).unwrap();
    let _first = stage.connect("socket").unwrap();
    let other = Stage::new(ANONYMOUS);
    let error = Handed::connect(other.ram.clone(), &stage.path("socket"), false, other.notifier.clone());
    let error = error.unwrap_err();
    assert!(matches!(error, HandOverError::NotAccepted), "{error}");
}

/// It may only be slow: the guest waits, and nothing is told.
#[test]
fn a_handler_that_never_accepts_is_a_guest_that_waits() {
    let stage = Stage::new(ANONYMOUS);
    let _idle = stage.handler("first", Mode::NeverAccept);
    let mut handed = stage.connect("first").unwrap();
    let touch = stage.touch(12);
    touch.assert_waits();
    stage.assert_nothing_told();
    let _next = stage.handler("second", Mode::Good);
    handed.replace(&stage.path("second")).unwrap();
    assert_eq!(touch.value(), content(12));
}

#[test]
fn a_handler_that_goes_without_reading_is_told_of() {
    let stage = Stage::new(ANONYMOUS);
    let listener = stage.listen("first");
    let mut handed = stage.connect("first").unwrap();
    drop(listener.accept().unwrap());
    let cause = stage.told();
    assert!(cause.contains("closed its socket without reading what it was handed"), "{cause}");
    let touch = stage.touch(1500);
    touch.assert_waits();
    let _next = stage.handler("second", Mode::Good);
    handed.replace(&stage.path("second")).unwrap();
    assert_eq!(touch.value(), content(1500));
}

/// As handlers do that take care of their file: the sizes have to add up.
#[test]
fn a_handler_of_another_memory_file_goes() {
    let stage = Stage::new(ANONYMOUS);
    fs::write(stage.path("memory"), [1; PAGE_BYTES]).unwrap();
    let handler = stage.handler("socket", Mode::Good);
    let _handed = stage.connect("socket").unwrap();
    let error = handler.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("6291456 bytes of guest memory, and 4096 in the file"), "{error}");
    stage.told();
}

#[test]
fn memory_that_is_served_already_is_not_handed_over() {
    let stage = Stage::new(ANONYMOUS);
    let _first = stage.handler("socket", Mode::Good);
    let _handed = stage.connect("socket").unwrap();
    let error = stage.connect("socket").unwrap_err();
    assert!(matches!(error, HandOverError::Register(RegisterError::Busy)), "{error}");
    let touch = stage.touch(30);
    assert_eq!(touch.value(), content(30));
}
