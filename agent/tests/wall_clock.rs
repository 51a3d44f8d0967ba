//! What frames say of the wall clock: at a generation's start, and when it has moved.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::RefCell;
use std::rc::Rc;

use agent::batch::{Batch, Identity, Limits};
use codec::{Capabilities, Class, Clock, FRAME_BYTES_MAX, Frame, K8sEvent, Record};

/// Ten years, ns.
const TEN_YEARS_NS: i64 = 10 * 365 * 86_400 * 1_000_000_000;

const fn clock(offset_ns: i64) -> Clock {
    Clock { offset_ns, uncertainty_ns: 0, synchronized: false }
}

#[test]
fn a_step_of_the_wall_clock_is_told_once_in_each_class_and_with_each_generation() {
    let frames: Rc<RefCell<Vec<Vec<u8>>>> = Rc::default();
    let identity = Identity {
        agent_id: "gw-0001".into(),
        boot_id: [1; 16],
        run_id: [2; 16],
        kernel: "test".into(),
        machine: "test".into(),
    };
    let limits = Limits { frame_bytes_max: FRAME_BYTES_MAX, generation_records_max: 1000 };
    let capabilities = Capabilities { attached: 31, missing: 0, jit: true };
    let sink = Box::new(Rc::clone(&frames));
    let mut batch = Batch::new(identity, limits, capabilities, clock(5), None, None, sink);
    let told = |batch: &mut Batch, class| {
        let event = K8sEvent { kind: 0, action: 0, time_ns: 1, message: b"x" };
        assert!(batch.push(class, &Record::K8sEvent(event)));
        batch.finish(class);
        let frame = frames.borrow_mut().pop().unwrap();
        Frame::decode(&frame).unwrap().0.header.clock
    };
    for class in Class::ALL {
        assert_eq!(told(&mut batch, class), Some(clock(5)));
        assert_eq!(told(&mut batch, class), None);
    }
    for offset_ns in [TEN_YEARS_NS, -TEN_YEARS_NS] {
        batch.set_clock(clock(offset_ns));
        for class in Class::ALL {
            assert_eq!(told(&mut batch, class), Some(clock(offset_ns)));
            assert_eq!(told(&mut batch, class), None);
        }
    }
    batch.restart_generation(Class::Urgent);
    assert_eq!(told(&mut batch, Class::Urgent), Some(clock(-TEN_YEARS_NS)));
}
