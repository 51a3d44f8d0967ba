//! Frames of every version that was ever released decode today, and today's encoder writes the
//! same bytes as when the newest was committed. The files are never written by a tool: a new
//! version of the wire adds one.

mod sample;

use codec::{
    CLASSES, Class, EndReason, FRAME_BYTES_MAX, Frame, FrameWriter, Oid, Record, Step, StepChange,
    Strain, Subject, Summary, Volume,
};

const VERSION_0: &[u8] = include_bytes!("golden/version-0.frame");

#[test]
fn version_0_decodes_to_the_sample() {
    let (frame, rest) = Frame::decode(VERSION_0).unwrap();
    assert!(rest.is_empty());
    assert_eq!(frame.header, sample::header());
    let records: Vec<Record<'_>> = frame.records().map(Result::unwrap).collect();
    assert_eq!(records, sample::records());
}

#[test]
fn the_sample_encodes_to_version_0() {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let mut writer = FrameWriter::new(&mut buffer).unwrap();
    for record in sample::records() {
        writer.push(&record).unwrap();
    }
    let frame = writer.finish(&sample::header()).unwrap();
    assert!(frame == VERSION_0, "today's frame in hex: {}", hexadecimal(frame));
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn numbers_of_kinds_and_terms_stay() {
    for (number, operation) in codec::Operation::ALL.into_iter().enumerate() {
        assert_eq!(operation as usize, number);
    }
    for (number, term) in codec::Term::ALL.into_iter().enumerate() {
        assert_eq!(term as usize, number);
    }
}

#[test]
fn the_table_of_classes_stays() {
    let class = |record: &Record<'_>| Class::of(record).map_or("entity", Class::name);
    let told: Vec<&str> = sample::records().iter().map(class).collect();
    assert_eq!(
        told,
        [
            "entity", "entity", "entity", "urgent", "urgent", "volume", "volume", "urgent",
            "volume", "entity", "urgent"
        ]
    );
    let numbers: Vec<_> = (0..=u8::MAX).filter_map(Class::of_number).collect();
    assert_eq!((numbers.as_slice(), numbers.len()), (&Class::ALL[..], CLASSES));
}

/// What the sample does not have.
#[test]
fn summaries_and_steps_come_back() {
    let oid = Oid { start_ns: u64::MAX, pid: u32::MAX };
    for subject in [Subject::Files, Subject::Network, Subject::Processes] {
        let mut header = sample::header();
        let steps = Step::ALL.into_iter().zip(Strain::ALL.into_iter().cycle());
        header.steps.extend(steps.map(|(step, strain)| StepChange {
            at_ns: u64::MAX,
            step,
            strain,
            percent: u32::MAX,
        }));
        let summary = Record::Summary(Summary {
            process: oid,
            time_ns: 1,
            end_ns: u64::MAX,
            subject,
            session: true,
            ops: u64::MAX,
            records: u64::MAX,
            objects: u64::MAX,
            processes: u64::MAX,
            volume: Volume { read_ops: 1, write_ops: 2, read_bytes: 3, write_bytes: u64::MAX },
            end: EndReason::LackOfResources,
        });
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        let mut writer = FrameWriter::new(&mut buffer).unwrap();
        writer.push(&summary).unwrap();
        let frame = writer.finish(&header).unwrap();
        let (decoded, _) = Frame::decode(frame).unwrap();
        assert_eq!(decoded.header.steps, header.steps);
        assert_eq!(decoded.records().collect::<Vec<_>>(), [Ok(summary)]);
    }
}
