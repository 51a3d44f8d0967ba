//! Frames for tests, of any size.

use codec::{
    Clock, FRAME_BYTES_MAX, FrameWriter, GenerationStart, Header, K8sEvent, Record, StreamKey,
};

/// The run that all sample frames are of.
pub(crate) const RUN_ID: [u8; 16] = [0x5a; 16];

/// A frame with `records` records of about `bytes` bytes each. Sequence 0 begins the
/// generation of the agent `gw-0001`.
pub(crate) fn frame(sequence: u64, records: u32, bytes: usize) -> Vec<u8> {
    frame_of(0, (0, sequence == 0), sequence, records, bytes)
}

/// The same of a class and a generation, which it begins or not.
pub(crate) fn frame_of(
    class: u8,
    (generation, starts): (u32, bool),
    sequence: u64,
    records: u32,
    bytes: usize,
) -> Vec<u8> {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let mut writer = FrameWriter::new(&mut buffer).unwrap();
    // Hard to mistake for a frame, easy to mistake for the beginning of one.
    let message = b"SFE\0".repeat(bytes / 4);
    for record in 0..u64::from(records) {
        let event = K8sEvent { kind: 0, action: 0, time_ns: sequence + record, message: &message };
        writer.push(&Record::K8sEvent(event)).unwrap();
    }
    let start = GenerationStart {
        agent_id: "gw-0001",
        boot_id: [1; 16],
        run_id: RUN_ID,
        agent_version: "0.0.0",
        kernel: "test",
        machine: "test",
    };
    let clock = Clock { offset_ns: 0, uncertainty_ns: 0, synchronized: false };
    let header = Header {
        key: StreamKey { class, ..key(sequence) },
        generation,
        start: starts.then_some(start),
        clock: starts.then_some(clock),
        ..Header::default()
    };
    writer.finish(&header).unwrap().to_vec()
}

/// The key of the sample frame with this sequence.
pub(crate) fn key(sequence: u64) -> StreamKey {
    StreamKey { run_tag: *RUN_ID.first_chunk().unwrap(), class: 0, sequence }
}
