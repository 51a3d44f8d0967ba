//! The collector's configuration file: every bound with its default, unknown keys rejected.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use crate::layout;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) listen: Listen,
    pub(crate) tls: Tls,
    pub(crate) store: StoreConfig,
    #[serde(default)]
    pub(crate) limits: Limits,
    #[serde(default)]
    pub(crate) agents: Agents,
}

/// Where agents connect.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Listen {
    /// Address and port; port 0 takes a free one.
    pub(crate) address: SocketAddr,
}

impl Default for Listen {
    fn default() -> Self {
        Listen { address: SocketAddr::from(([0, 0, 0, 0], 7443)) }
    }
}

/// Files in PEM; relative paths are relative to the configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    /// The fleet's CA: who it signed may connect.
    pub(crate) ca: PathBuf,
    /// The collector's certificate, with its chain.
    pub(crate) certificate: PathBuf,
    /// The collector's private key.
    pub(crate) key: PathBuf,
    /// Lists of revoked certificates, by the CAs of `ca`: one file or several.
    #[serde(default, deserialize_with = "one_or_more")]
    pub(crate) crl: Vec<PathBuf>,
}

fn one_or_more<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "tls.crl is a file name or a list of them")]
    enum Files {
        One(PathBuf),
        More(Vec<PathBuf>),
    }
    Ok(match Files::deserialize(value)? {
        Files::One(file) => vec![file],
        Files::More(files) => files,
    })
}

/// What one agent may be bound to, bytes: room for a day of a quiet device, and a pebibyte.
const BYTES_PER_AGENT: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 50;

/// Where frames are kept.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoreConfig {
    /// The folder of the store, made if it is missing.
    pub(crate) directory: PathBuf,
    /// Most bytes of it that one agent may take; none: as many as there are.
    #[serde(default)]
    pub(crate) bytes_per_agent_max: Option<u64>,
}

/// Bounds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Largest body of one upload, bytes; more is answered with 413.
    pub(crate) body_bytes_max: usize,
    /// Connections that are served at a time. When all are taken the one that is idle longest
    /// gives way; if none is, a new one is answered with 503.
    pub(crate) connections_max: usize,
    /// Of them, those of one agent; its oldest gives way to a new one.
    pub(crate) agent_connections_max: usize,
    /// Connections in the TLS handshake; the oldest gives way to a new one.
    pub(crate) handshakes_max: usize,
    /// Uploads that are worked on at a time, which bounds the memory for bodies; more wait for
    /// half of the request's time, and are then answered with 503.
    pub(crate) uploads_max: usize,
    /// Longest time for a handshake, for a request's head and for its body, and for an answer to
    /// be taken, s.
    pub(crate) request_timeout_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body_bytes_max: 4 << 20,
            connections_max: 256,
            agent_connections_max: 4,
            handshakes_max: 256,
            uploads_max: 32,
            request_timeout_s: 30,
        }
    }
}

/// Which agents may send, beyond what the CA says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Agents {
    /// Ids whose frames are answered with 403: devices that were lost.
    pub(crate) denied: Vec<String>,
}

/// Why there is no configuration.
#[derive(Debug)]
pub(crate) struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// Names the file, and of all values that are wrong the key and what it may be.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let error = |what: &dyn fmt::Display| ConfigError(format!("{}: {what}", path.display()));
        let text = fs::read_to_string(path).map_err(|e| error(&e))?;
        let mut config: Config = toml::from_str(&text).map_err(|e| error(&e))?;
        let faults =
            [config.limits.faults(), config.store.faults(), config.agents.faults()].concat();
        if !faults.is_empty() {
            return Err(error(&faults.join("; ")));
        }
        let base = path.parent().unwrap_or(Path::new("")).to_owned();
        let Tls { ca, certificate, key, crl } = &mut config.tls;
        let files = [ca, certificate, key, &mut config.store.directory].into_iter();
        for file in files.chain(crl) {
            *file = base.join(&*file);
        }
        Ok(config)
    }
}

impl StoreConfig {
    fn faults(&self) -> Vec<String> {
        let (low, high) = BYTES_PER_AGENT.into_inner();
        let wrong = self.bytes_per_agent_max.filter(|bytes| !(low..=high).contains(bytes));
        let fault = wrong.map(|bytes| {
            format!(
                "store.bytes_per_agent_max is {bytes}: set it to {low} to {high}, or leave it out"
            )
        });
        fault.into_iter().collect()
    }
}

impl Limits {
    fn faults(&self) -> Vec<String> {
        let bounds = [
            ("body_bytes_max", self.body_bytes_max as u64, 1024..=(1 << 30)),
            ("connections_max", self.connections_max as u64, 1..=65_536),
            ("agent_connections_max", self.agent_connections_max as u64, 1..=65_536),
            ("handshakes_max", self.handshakes_max as u64, 16..=65_536),
            ("uploads_max", self.uploads_max as u64, 1..=65_536),
            ("request_timeout_s", self.request_timeout_s, 1..=3600),
        ];
        let wrong = bounds.into_iter().filter(|(_, value, range)| !range.contains(value));
        let fault = |(key, value, range): (_, _, std::ops::RangeInclusive<u64>)| {
            let (low, high) = range.into_inner();
            format!("limits.{key} is {value}: set it to {low} to {high}")
        };
        wrong.map(fault).collect()
    }
}

impl Agents {
    /// An id that no agent can have would deny nobody.
    fn faults(&self) -> Vec<String> {
        let wrong = self.denied.iter().filter(|id| !layout::is_agent_id(id));
        let fault = |id| {
            format!("agents.denied has {id:?}: ids are of the form [a-z0-9][a-z0-9._-]{{0,62}}")
        };
        wrong.map(fault).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("collector.toml");
        fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    const MINIMAL: &str = "[tls]\nca = 'ca.pem'\ncertificate = '/c.pem'\nkey = 'c.key'\n\
                           [store]\ndirectory = 'store'\n";

    #[test]
    fn defaults_are_filled_in_and_paths_are_relative_to_the_file() {
        let config = load(MINIMAL).unwrap();
        assert!(config.tls.ca.is_absolute());
        assert!(config.tls.ca.ends_with("ca.pem"));
        assert_eq!(config.tls.certificate, Path::new("/c.pem"));
        assert_eq!(config.limits.body_bytes_max, 4194304);
        assert_eq!(config.listen.address.port(), 7443);
        assert!(config.tls.crl.is_empty());
    }

    #[test]
    fn revocation_lists_are_one_file_or_several() {
        let with = |crl: &str| load(&MINIMAL.replace("[store]", &format!("crl = {crl}\n[store]")));
        assert!(with("'a.pem'").unwrap().tls.crl[0].is_absolute());
        assert_eq!(with("['a.pem', '/b.pem']").unwrap().tls.crl[1], Path::new("/b.pem"));
        assert!(with("1").unwrap_err().to_string().contains("tls.crl is a file name"));
    }

    #[test]
    fn errors_name_the_key_and_its_range() {
        let error = load(&format!("{MINIMAL}[limits]\nconnections_max = 0\n")).unwrap_err();
        assert!(error.to_string().ends_with("limits.connections_max is 0: set it to 1 to 65536"));
        let error = load(&format!("{MINIMAL}[limits]\nconnections = 1\n")).unwrap_err();
        assert!(error.to_string().contains("connections"), "{error}");
        let with = |bytes: u64| load(&format!("{MINIMAL}bytes_per_agent_max = {bytes}\n"));
        assert_eq!(with(1 << 20).unwrap().store.bytes_per_agent_max, Some(1 << 20));
        let error = with(0).unwrap_err().to_string();
        assert!(error.contains("store.bytes_per_agent_max is 0: set it to 1048576 to"), "{error}");
        assert!(load("").unwrap_err().to_string().contains("tls"));
        let error = load(&format!(
            "{MINIMAL}bytes_per_agent_max = 0\n[limits]\nconnections_max = 0\nuploads_max = 0\n\
             [agents]\ndenied = ['gw-1', 'GW 2']\n"
        ));
        let error = error.unwrap_err().to_string();
        let named =
            ["s.connections_max is", "s.uploads_max is", "agent_max is", "has \"GW 2\": ids"];
        assert!(named.iter().all(|named| error.contains(named)), "{error}");
        assert!(!error.contains("gw-1"), "{error}");
    }
}
