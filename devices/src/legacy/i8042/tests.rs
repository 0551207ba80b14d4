use std::sync::mpsc::{Receiver, channel};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::interrupt::IrqFd;

fn controller() -> (I8042, EventFd, Receiver<PowerEvent>) {
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    let interrupt = Arc::new(IrqFd(line.try_clone().unwrap()));
    let (sender, events) = channel();
    let notify = Box::new(move |event| sender.send(event).unwrap());
    (I8042::new(notify, interrupt, I8042Metrics::default()), line, events)
}

fn read(device: &mut I8042, offset: u64) -> u8 {
    let mut data = [0];
    device.read(offset, &mut data);
    data[0]
}

fn ask(device: &mut I8042, command: u8) -> u8 {
    device.write(COMMAND_OFFSET, &[command]);
    assert_ne!(read(device, COMMAND_OFFSET) & STATUS_OUTPUT_FULL, 0, "{command:#x}");
    let answer = read(device, DATA_OFFSET);
    assert_eq!(read(device, COMMAND_OFFSET) & STATUS_OUTPUT_FULL, 0, "{command:#x}");
    answer
}

#[test]
fn the_reset_command_resets() {
    let (mut device, _, events) = controller();
    device.write(DATA_OFFSET, &[command::PULSE_RESET]);
    assert!(events.try_recv().is_err(), "that was data");
    device.write(COMMAND_OFFSET, &[command::PULSE_RESET]);
    assert_eq!(events.recv().unwrap(), PowerEvent::Reset);
    assert_eq!(device.metrics.reset_count.get(), 1);
}

#[test]
fn ctrl_alt_del_is_four_bytes_with_an_interrupt_each() {
    let (mut device, line, _) = controller();
    device.trigger_ctrl_alt_del().unwrap();
    let keys: Vec<u8> = (0..4)
        .map(|_| {
            assert_eq!(line.read().unwrap(), 1);
            read(&mut device, DATA_OFFSET)
        })
        .collect();
    assert_eq!(keys, CTRL_ALT_DEL);
    assert!(line.read().is_err());
}

#[test]
fn keys_that_nobody_reads_are_refused_in_the_end() {
    let (mut device, ..) = controller();
    for _ in 0..BUFFER_BYTES_MAX / CTRL_ALT_DEL.len() {
        device.trigger_ctrl_alt_del().unwrap();
    }
    assert!(matches!(device.trigger_ctrl_alt_del(), Err(I8042Error::BufferFull)));
}

#[test]
fn a_probing_driver_finds_a_keyboard_and_no_mouse() {
    let (mut device, line, _) = controller();
    assert_eq!(ask(&mut device, command::SELF_TEST), SELF_TEST_PASSED);
    assert_eq!(ask(&mut device, command::TEST_KEYBOARD_PORT), PORT_TEST_PASSED);
    assert_eq!(ask(&mut device, command::TEST_MOUSE_PORT), PORT_TEST_CLOCK_STUCK);
    device.write(COMMAND_OFFSET, &[command::WRITE_CONTROL]);
    device.write(DATA_OFFSET, &[CONTROL_SYSTEM]);
    assert_eq!(ask(&mut device, command::READ_CONTROL), CONTROL_SYSTEM);
    device.write(COMMAND_OFFSET, &[command::WRITE_OUTPUT_PORT]);
    device.write(DATA_OFFSET, &[0x12]);
    assert_eq!(ask(&mut device, command::READ_OUTPUT_PORT), 0x12);
    while line.read().is_ok() {}
    device.write(DATA_OFFSET, &[0xed]);
    assert_eq!(read(&mut device, DATA_OFFSET), KEYBOARD_ACK);
    assert!(line.read().is_err(), "the interrupt was turned off");
}

#[test]
fn other_ports_and_widths_are_counted_as_missed() {
    let (mut device, ..) = controller();
    let mut wide = [0; 2];
    device.read(DATA_OFFSET, &mut wide);
    assert_eq!(wide, [0xff; 2]);
    assert_eq!(read(&mut device, 1), 0xff);
    device.write(COMMAND_OFFSET, &[0xfe, 0xfe]);
    device.write(2, &[0]);
    assert_eq!(device.metrics.missed_read_count.get(), 2);
    assert_eq!(device.metrics.missed_write_count.get(), 2);
}

/// The controller that `state` was saved from, with its interrupt.
fn restored(state: &I8042State) -> Result<(I8042, EventFd), I8042RestoreError> {
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    let interrupt = Arc::new(IrqFd(line.try_clone().unwrap()));
    I8042::restore(state, Box::new(|_| {}), interrupt, I8042Metrics::default()).map(|device| (device, line))
}

#[test]
fn a_saved_controller_goes_on_elsewhere() {
    let (mut device, ..) = controller();
    device.write(COMMAND_OFFSET, &[command::WRITE_OUTPUT_PORT]);
    device.write(DATA_OFFSET, &[0x12]);
    device.trigger_ctrl_alt_del().unwrap();
    assert_eq!(read(&mut device, DATA_OFFSET), CTRL_ALT_DEL[0]);
    // In the middle of a command, and of keys.
    device.write(COMMAND_OFFSET, &[command::WRITE_CONTROL]);
    let state = device.save();
    let (mut moved, line) = restored(&state).unwrap();
    assert_eq!(moved.save(), state);
    for key in &CTRL_ALT_DEL[1..] {
        assert_eq!(line.read().unwrap(), 1, "an interrupt for each byte");
        assert_eq!(read(&mut moved, DATA_OFFSET), *key);
    }
    assert_ne!(read(&mut moved, COMMAND_OFFSET) & STATUS_COMMAND, 0);
    moved.write(DATA_OFFSET, &[CONTROL_SYSTEM]);
    assert_eq!(ask(&mut moved, command::READ_CONTROL), CONTROL_SYSTEM, "that was the command's byte");
    assert_eq!(ask(&mut moved, command::READ_OUTPUT_PORT), 0x12);
}

#[test]
fn a_controller_that_is_idle_or_silent_interrupts_nobody_when_it_is_restored() {
    let (mut device, ..) = controller();
    let (_, line) = restored(&device.save()).unwrap();
    assert!(line.read().is_err());
    device.write(COMMAND_OFFSET, &[command::WRITE_CONTROL]);
    device.write(DATA_OFFSET, &[CONTROL_SYSTEM]);
    device.write(DATA_OFFSET, &[0xed]);
    let (mut moved, line) = restored(&device.save()).unwrap();
    assert!(line.read().is_err(), "the interrupt was turned off");
    assert_eq!(read(&mut moved, DATA_OFFSET), KEYBOARD_ACK);
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let state = controller().0.save();
    let version = restored(&I8042State { version: 2, ..state.clone() });
    assert!(matches!(version, Err(I8042RestoreError::Version { found: 2 })));
    let output = restored(&I8042State { output: vec![0; BUFFER_BYTES_MAX + 1], ..state.clone() });
    assert!(matches!(output, Err(I8042RestoreError::State)));
    let status = restored(&I8042State { status: state.status | STATUS_OUTPUT_FULL, ..state });
    assert!(matches!(status, Err(I8042RestoreError::State)));
}
