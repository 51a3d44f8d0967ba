//! Frames of every version that was ever released decode today, and today's encoder writes the
//! same bytes as when the newest was committed. The files are never written by a tool: a new
//! version of the wire adds one.

mod sample;

use codec::{CLASSES, Class, FRAME_BYTES_MAX, Frame, FrameWriter, Record};

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
