use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::event_loop::{DeviceLoop, settle};
use crate::interrupt::IrqFd;
use crate::output::BUFFER_BYTES_MAX;
use crate::sync::lock;
use crate::virtio::test_driver::wait_for;

const DATA: u64 = 0;
const IER: u64 = 1;
const MCR: u64 = 4;
const LSR: u64 = 5;
const DATA_READY: u8 = 1;
const RECEIVE_INTERRUPT: u8 = 1;
const LOOPBACK: u8 = 1 << 4;

const PATIENCE: Duration = Duration::from_secs(20);

/// A sink that writes nothing until it is told to go on, as a terminal that is stopped.
struct Gate {
    open: Receiver<()>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The other end has gone: the gate stays open.
        _ = self.open.recv();
        self.written.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn gate() -> (Gate, Sender<()>, Arc<Mutex<Vec<u8>>>) {
    let (opener, open) = channel();
    let written = Arc::<Mutex<Vec<u8>>>::default();
    (Gate { open, written: written.clone() }, opener, written)
}

struct Port {
    serial: Arc<Mutex<Serial>>,
    line: EventFd,
    metrics: UartMetrics,
}

fn port(output: Option<Box<dyn Write + Send>>, limit: Option<TokenBucketConfig>) -> Port {
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    let interrupt = Arc::new(IrqFd(line.try_clone().unwrap()));
    let metrics = UartMetrics::default();
    let serial = Serial::new(interrupt, output, limit, metrics.clone()).unwrap();
    Port { serial: Arc::new(Mutex::new(serial)), line, metrics }
}

impl Port {
    fn read(&self, offset: u64) -> u8 {
        let mut data = [0];
        BusDevice::read(&mut *lock(&self.serial), offset, &mut data);
        data[0]
    }

    fn write(&self, offset: u64, value: u8) {
        BusDevice::write(&mut *lock(&self.serial), offset, &[value]);
    }

    fn write_all(&self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write(DATA, byte));
    }

    fn flush(&self) -> bool {
        lock(&self.serial).flush(PATIENCE)
    }

    /// What a guest does: it reads while there is data.
    fn receive(&self) -> Option<u8> {
        (self.read(LSR) & DATA_READY != 0).then(|| self.read(DATA))
    }

    fn attach(&self, source: impl Into<OwnedFd>) -> DeviceLoop {
        let input = SerialInput::new(&self.serial, source.into()).unwrap();
        let device_loop = DeviceLoop::spawn("test-serial").unwrap();
        device_loop.handle().add(Arc::new(Mutex::new(input))).unwrap();
        device_loop
    }

    fn receive_exactly(&self, count: usize) -> Vec<u8> {
        (0..count).map(|_| wait_for("serial input", || self.receive())).collect()
    }
}

fn text(length: usize) -> Vec<u8> {
    (0..length).map(|index| b'!' + u8::try_from(index % 90).unwrap()).collect()
}

#[test]
fn what_the_guest_writes_comes_out_in_order() {
    let (mut reader, writer) = UnixStream::pair().unwrap();
    let port = port(Some(Box::new(writer)), None);
    let sent = text(10_000);
    port.write_all(&sent);
    // A socket holds only so many small writes: what is not read yet cannot be flushed.
    let mut received = vec![0; sent.len()];
    reader.read_exact(&mut received).unwrap();
    assert!(port.flush());
    assert_eq!(received, sent);
    assert_eq!(port.metrics.write_count.get(), 10_000);
    assert!(port.metrics.flush_count.get() > 0);
    assert_eq!(port.metrics.missed_write_count.get(), 0);
}

#[test]
fn a_stopped_terminal_stops_no_vcpu_and_what_does_not_fit_is_counted() {
    let (gate, opener, written) = gate();
    let port = port(Some(Box::new(gate)), None);
    let sent = text(BUFFER_BYTES_MAX + 1000);
    port.write_all(&sent);
    assert!(!lock(&port.serial).flush(Duration::ZERO));
    assert_eq!(port.metrics.missed_write_count.get(), 1000);
    assert_eq!(port.read(LSR) & 0x20, 0x20, "the guest can go on writing");
    drop(opener);
    assert!(port.flush());
    assert_eq!(*written.lock().unwrap(), sent[..BUFFER_BYTES_MAX]);
    port.write_all(b"again");
    assert!(port.flush());
    assert_eq!(written.lock().unwrap()[BUFFER_BYTES_MAX..], *b"again");
}

#[test]
fn a_port_on_a_stopped_terminal_can_be_dropped() {
    let (gate, opener, _) = gate();
    let port = port(Some(Box::new(gate)), None);
    port.write_all(b"never seen");
    drop(port);
    drop(opener);
}

#[test]
fn a_sink_that_does_not_block_is_waited_for() {
    struct Reluctant(Arc<Mutex<Vec<u8>>>, u32);
    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            match self.1 % 3 {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                1 => Err(io::ErrorKind::Interrupted.into()),
                _ => {
                    self.0.lock().unwrap().push(bytes[0]);
                    Ok(1)
                }
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let written = Arc::<Mutex<Vec<u8>>>::default();
    let port = port(Some(Box::new(Reluctant(written.clone(), 0))), None);
    port.write_all(b"patience");
    assert!(port.flush());
    assert_eq!(*written.lock().unwrap(), b"patience");
}

#[test]
fn a_sink_that_has_gone_is_counted_and_hurts_nobody() {
    let (reader, writer) = UnixStream::pair().unwrap();
    drop(reader);
    let port = port(Some(Box::new(writer)), None);
    port.write_all(b"lost");
    assert!(port.flush());
    assert_eq!(port.metrics.missed_write_count.get(), 4);
    assert!(port.metrics.error_count.get() > 0);
}

#[test]
fn the_limiter_drops_what_is_over_it() {
    let (mut reader, writer) = UnixStream::pair().unwrap();
    let limit = TokenBucketConfig { size: 10, one_time_burst: 5, refill_time_ms: 3_600_000 };
    let port = port(Some(Box::new(writer)), Some(limit));
    port.write_all(&text(100));
    assert!(port.flush());
    assert_eq!(port.metrics.missed_write_count.get(), 85);
    drop(port);
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    assert_eq!(received, text(15));
}

#[test]
fn nowhere_takes_everything() {
    let port = port(None, None);
    port.write_all(&text(100_000));
    assert!(port.flush());
    assert_eq!(port.metrics.missed_write_count.get(), 0);
}

#[test]
fn a_slow_guest_gets_all_input_in_order() {
    let port = port(None, None);
    port.write(IER, RECEIVE_INTERRUPT);
    let (reader, mut writer) = UnixStream::pair().unwrap();
    let device_loop = port.attach(reader);
    let sent = text(5000);
    writer.write_all(&sent).unwrap();
    wait_for("an interrupt", || port.line.read().ok());
    assert_eq!(port.receive_exactly(sent.len()), sent);
    assert_eq!(port.receive(), None);
    writer.write_all(b"more").unwrap();
    assert_eq!(port.receive_exactly(4), b"more");
    device_loop.stop().unwrap();
}

#[test]
fn a_full_fifo_is_not_watched_for() {
    let port = port(None, None);
    let (reader, mut writer) = UnixStream::pair().unwrap();
    reader.set_nonblocking(true).unwrap();
    let device_loop = port.attach(reader.try_clone().unwrap());
    writer.write_all(&text(1000)).unwrap();
    wait_for("a full FIFO", || (lock(&port.serial).uart.fifo_capacity() == 0).then_some(()));
    settle(&device_loop.handle());
    assert!(lock(&port.serial).input_waits);
    // What was not read is still with the sender's socket: a FIFO full, and no more, was taken.
    let mut rest = Vec::new();
    _ = (&reader).read_to_end(&mut rest);
    assert_eq!(rest.len(), 1000 - 64);
}

#[test]
fn the_end_of_the_input_is_no_busy_loop() {
    let port = port(None, None);
    let (reader, mut writer) = UnixStream::pair().unwrap();
    let input = Arc::new(Mutex::new(SerialInput::new(&port.serial, reader.into()).unwrap()));
    let device_loop = DeviceLoop::spawn("test-serial").unwrap();
    device_loop.handle().add(input.clone()).unwrap();
    writer.write_all(b"bye").unwrap();
    drop(writer);
    assert_eq!(port.receive_exactly(3), b"bye");
    wait_for("the end", || lock(&input).has_ended().then_some(()));
}

#[test]
fn input_from_a_file_or_from_nowhere_ends() {
    let port = port(None, None);
    let mut file = tempfile::tempfile().unwrap();
    let sent = text(300);
    file.write_all(&sent).unwrap();
    io::Seek::rewind(&mut file).unwrap();
    let from_file = port.attach(file);
    assert_eq!(port.receive_exactly(300), sent);
    let from_nowhere = port.attach(std::fs::File::open("/dev/null").unwrap());
    assert_eq!(port.receive(), None);
    from_file.stop().unwrap();
    from_nowhere.stop().unwrap();
}

#[test]
fn loopback_holds_input_back_and_loses_none() {
    let port = port(None, None);
    port.write(MCR, LOOPBACK);
    let (reader, mut writer) = UnixStream::pair().unwrap();
    let _device_loop = port.attach(reader);
    writer.write_all(&text(200)).unwrap();
    wait_for("input to arrive", || (!lock(&port.serial).inbox.is_empty()).then_some(()));
    port.write(DATA, b'x');
    assert_eq!(port.receive(), Some(b'x'), "a driver's own byte comes back");
    assert_eq!(port.receive(), None);
    port.write(MCR, 0);
    assert_eq!(port.receive_exactly(200), text(200));
}

#[test]
fn a_saved_port_goes_on_elsewhere() {
    let limit = TokenBucketConfig { size: 3, one_time_burst: 0, refill_time_ms: 3_600_000 };
    let first = port(Some(Box::new(io::sink())), Some(limit));
    first.write(IER, RECEIVE_INTERRUPT);
    first.write(7, 0x5a);
    first.write_all(b"ab");
    lock(&first.serial).receive(b"waiting");
    let state = lock(&first.serial).save();
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    let interrupt = Arc::new(IrqFd(line.try_clone().unwrap()));
    let metrics = UartMetrics::default();
    let restore = |state: &SerialState| {
        Serial::restore(state, interrupt.clone(), Some(Box::new(io::sink())), metrics.clone())
    };
    let serial = restore(&state).unwrap();
    let second = Port { serial: Arc::new(Mutex::new(serial)), line, metrics: metrics.clone() };
    assert_eq!(lock(&second.serial).save(), state);
    assert_eq!(second.read(7), 0x5a);
    assert_eq!(second.receive_exactly(7), b"waiting");
    second.write_all(b"cd");
    assert_eq!(metrics.missed_write_count.get(), 1, "one token was left");

    let version = restore(&SerialState { version: 2, ..state.clone() });
    assert!(matches!(version, Err(SerialError::Version { found: 2 })));
    for state in
        [SerialState { fifo: vec![0; 65], ..state.clone() }, SerialState { inbox: vec![0; 65], ..state }]
    {
        assert!(matches!(restore(&state), Err(SerialError::State)));
    }
}

#[test]
fn a_port_that_is_saved_in_loopback_has_its_input_afterwards() {
    let first = port(None, None);
    first.write(IER, RECEIVE_INTERRUPT);
    first.write(MCR, LOOPBACK);
    first.write(DATA, b'x');
    lock(&first.serial).receive(b"held back");
    let state = lock(&first.serial).save();
    assert_eq!((&state.fifo[..], &state.inbox[..]), (&b"x"[..], &b"held back"[..]));
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    let interrupt = Arc::new(IrqFd(line.try_clone().unwrap()));
    let metrics = UartMetrics::default();
    let serial = Serial::restore(&state, interrupt, None, metrics.clone()).unwrap();
    let second = Port { serial: Arc::new(Mutex::new(serial)), line, metrics };
    assert!(second.line.read().is_ok(), "what was not read is told again");
    assert_eq!(second.receive(), Some(b'x'));
    assert_eq!(second.receive(), None, "still in loopback");
    second.write(MCR, 0);
    assert_eq!(second.receive_exactly(9), b"held back");
}

#[test]
fn accesses_of_the_wrong_kind_are_counted_as_missed() {
    let port = port(None, None);
    let mut wide = [0; 2];
    BusDevice::read(&mut *lock(&port.serial), 0, &mut wide);
    BusDevice::write(&mut *lock(&port.serial), 0, &wide);
    BusDevice::write(&mut *lock(&port.serial), 0x100, &[1]);
    assert_eq!(wide, [0xff; 2]);
    assert_eq!((port.metrics.missed_read_count.get(), port.metrics.missed_write_count.get()), (1, 2));
}
