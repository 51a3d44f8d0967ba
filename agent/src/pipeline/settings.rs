//! What the path is built with: the configuration, its budget divided for this machine.

use std::time::Duration;

use codec::CLASSES;

use super::Error;
use crate::batch::Limits;
use crate::budget::{self, Division};
use crate::config::Config;
use crate::engine::{self, Timeouts};
use crate::ladder;
use crate::privacy::Privacy;

/// Peers of one unconnected datagram socket that are told apart.
const PEERS_MAX: u32 = 64;
/// Bytes of a program's arguments that are kept.
const ARGS_BYTES_MAX: u32 = 2048;
/// Bytes at the beginning of a program's environment that are looked through.
const ENV_BYTES_MAX: u32 = 4096;

/// What the path is built with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bounds of the kernel side.
    pub bounds: bpf::Bounds,
    /// Bounds of the tables of the engine.
    pub tables: engine::Bounds,
    /// Timeouts of flows.
    pub timeouts: Timeouts,
    /// Bounds of frames.
    pub limits: Limits,
    /// By class, the age at which a frame is finished.
    pub frame_ages_max: [Duration; CLASSES],
    /// When steps of the ladder are taken.
    pub ladder: ladder::Limits,
    /// What is masked in arguments.
    pub privacy: Privacy,
}

impl Settings {
    /// From the configuration, for this machine.
    ///
    /// # Errors
    /// [`Error::Config`] if the budget is too small, [`Error::Probes`] if the kernel does not
    /// tell the number of processors.
    pub fn new(config: &Config) -> Result<Settings, Error> {
        let processors = bpf::processors().map_err(Error::Probes)?;
        let division = budget::divide(config, processors)
            .map_err(|too_small| Error::Config(too_small.to_string()))?;
        Ok(Settings::divided(config, &division))
    }

    /// From the configuration and its divided budget.
    pub fn divided(config: &Config, division: &Division) -> Settings {
        Settings {
            bounds: bpf::Bounds {
                ring_bytes: division.ring_bytes,
                flow_entries: division.flow_entries,
                peers_max: PEERS_MAX,
                args_bytes_max: ARGS_BYTES_MAX,
                env_bytes_max: match config.privacy.environment.as_slice() {
                    [] => 0,
                    _ => ENV_BYTES_MAX,
                },
                btf: config.kernel.btf.clone(),
            },
            tables: engine::Bounds {
                flows_max: division.flows_max(),
                processes_max: division.processes_max,
                // Most records of a generation use a file that is known already.
                files_max: config.frames.generation_records_max as usize,
                text_bytes: division.text_bytes,
            },
            timeouts: Timeouts {
                idle_ns: u64::from(config.flows.idle_timeout_s) * 1_000_000_000,
                active_ns: u64::from(config.flows.active_timeout_s) * 1_000_000_000,
            },
            limits: Limits {
                frame_bytes_max: config.frames.bytes_max,
                generation_records_max: config.frames.generation_records_max,
            },
            frame_ages_max: [config.frames.age_max_s, config.frames.volume_age_max_s]
                .map(|age_s| Duration::from_secs(age_s.into())),
            ladder: ladder::Limits {
                step_max: config.ladder.last_step,
                ring_percent: config.ladder.ring_percent,
                processor_percent: config.ladder.processor_percent,
                spool_percent: config.ladder.spool_percent,
                hold_ns: u64::from(config.ladder.hold_s) * 1_000_000_000,
            },
            privacy: Privacy::new(
                config.privacy.redact,
                &config.privacy.redact_names,
                &config.privacy.environment,
            ),
        }
    }
}
