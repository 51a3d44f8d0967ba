//! Joins each event and flow with the entities that it refers to.
//!
//! A reference resolves to the latest record with that identity before it, and a header makes
//! the reader forget: the rule of all SysFlow readers. Memory grows with the entities of the
//! input, up to the next header.

use std::collections::HashMap;

use crate::sysflow::{Container, File, FileRef, Foid, Header, Oid, Pod, Process, Record};

/// Entities seen so far.
#[derive(Default)]
pub(super) struct Joiner {
    header: Option<Header>,
    containers: HashMap<String, Container>,
    processes: HashMap<Oid, Process>,
    files: HashMap<Foid, File>,
    pods: HashMap<String, Pod>,
}

/// An event or flow with its entities, where they are known.
pub(super) struct Row<'a> {
    pub(super) record: &'a Record,
    pub(super) header: Option<&'a Header>,
    pub(super) pod: Option<&'a Pod>,
    pub(super) container: Option<&'a Container>,
    pub(super) parent: Option<&'a Process>,
    pub(super) process: Option<&'a Process>,
    pub(super) file: Option<&'a File>,
    pub(super) new_file: Option<&'a File>,
}

impl Joiner {
    /// Takes note of an entity; other records leave no trace.
    pub(super) fn note(&mut self, record: Record) {
        match record {
            Record::Header(header) => {
                *self = Joiner { header: Some(header), ..Joiner::default() };
            }
            Record::Container(container) => {
                self.containers.insert(container.id.clone(), container);
            }
            Record::Process(process) => {
                self.processes.insert(process.oid, process);
            }
            Record::File(file) => {
                self.files.insert(file.oid, file);
            }
            Record::Pod(pod) => {
                self.pods.insert(pod.id.clone(), pod);
            }
            Record::ProcessEvent(_)
            | Record::NetworkFlow(_)
            | Record::FileFlow(_)
            | Record::FileEvent(_)
            | Record::NetworkEvent(_)
            | Record::ProcessFlow(_)
            | Record::K8sEvent(_)
            | Record::Summary(_) => {}
        }
    }

    /// The row of an event or flow; none for entities.
    pub(super) fn row<'a>(&'a self, record: &'a Record) -> Option<Row<'a>> {
        let (process, file, new_file) = match record {
            Record::ProcessEvent(r) => (Some(r.process), None, None),
            Record::NetworkFlow(r) => (Some(r.process), None, None),
            Record::FileFlow(r) => (Some(r.process), Some(r.file), None),
            Record::FileEvent(r) => (Some(r.process), Some(r.file), r.new_file),
            Record::NetworkEvent(r) => (Some(r.process), None, None),
            Record::ProcessFlow(r) => (Some(r.process), None, None),
            Record::Summary(r) => (Some(r.process), None, None),
            Record::K8sEvent(_) => (None, None, None),
            Record::Header(_)
            | Record::Container(_)
            | Record::Process(_)
            | Record::File(_)
            | Record::Pod(_) => return None,
        };
        let process = process.and_then(|oid| self.processes.get(&oid));
        let container = process
            .and_then(|process| process.container_id.as_ref())
            .and_then(|id| self.containers.get(id));
        let find = |file: Option<FileRef>| self.files.get(&file?.oid?);
        Some(Row {
            record,
            header: self.header.as_ref(),
            pod: container.and_then(|c| c.pod_id.as_ref()).and_then(|id| self.pods.get(id)),
            container,
            parent: process.and_then(|p| p.parent).and_then(|oid| self.processes.get(&oid)),
            process,
            file: find(file),
            new_file: find(new_file),
        })
    }
}
