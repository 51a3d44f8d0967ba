//! Priority classes: which kind of record travels in which stream. The one table of it.
//!
//! Each class of a run is a stream of its own, with its own sequence, generations and entities.
//! Urgent frames are finished, sent and kept before those of volumes.

use crate::record::Record;
use crate::summary::{Subject, Summary};

/// Number of classes.
pub const CLASSES: usize = 2;

/// A priority class, as [`StreamKey::class`](crate::StreamKey::class) numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// What an alarm needs, and all that is said of the run itself: the ledger, other runs,
    /// tombstones.
    Urgent = 0,
    /// What is much, and can wait.
    Volume = 1,
}

impl Class {
    /// All classes, the most urgent first.
    pub const ALL: [Class; CLASSES] = [Class::Urgent, Class::Volume];

    /// The name that reports print.
    pub fn name(self) -> &'static str {
        match self {
            Class::Urgent => "urgent",
            Class::Volume => "volume",
        }
    }

    /// The class with this number.
    pub fn of_number(number: u8) -> Option<Class> {
        Class::ALL.into_iter().find(|class| *class as u8 == number)
    }

    /// The class that summaries of a subject travel in: that of what they stand for.
    pub fn of_subject(subject: Subject) -> Class {
        match subject {
            Subject::Files => Class::Volume,
            Subject::Network | Subject::Processes => Class::Urgent,
        }
    }

    /// The class that a record travels in; none for an entity, which travels in each class whose
    /// records refer to it.
    pub fn of(record: &Record<'_>) -> Option<Class> {
        match record {
            Record::Container(_) | Record::Process(_) | Record::File(_) | Record::Pod(_) => None,
            Record::ProcessEvent(_)
            | Record::NetworkEvent(_)
            | Record::NetworkFlow(_)
            | Record::K8sEvent(_) => Some(Class::Urgent),
            Record::FileEvent(_) | Record::FileFlow(_) | Record::ProcessFlow(_) => {
                Some(Class::Volume)
            }
            Record::Summary(Summary { subject, .. }) => Some(Class::of_subject(*subject)),
        }
    }
}
