//! Mutual TLS towards the collector: who we are, whom we trust, what time it is.
//!
//! PEM files and a [`Clock`] go in, a [`Credentials`] with a rustls configuration comes out.
//! Only the fleet's CA is trusted, never the system's roots. The files are read anew when they
//! change, so a renewed certificate needs no restart; it must carry the same id. It opens no
//! connection itself: [`connector`] does, on behalf of `upload`.

pub mod certificate;
pub mod clock;
pub mod connector;
mod fault;
pub mod seal_key;
mod verifier;

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};

use crate::config;
use certificate::Certificate;
use clock::Clock;
use seal_key::SealKey;
use verifier::Verifier;

pub use fault::Fault;

/// Sessions kept for resumption: there is one collector, perhaps at two addresses.
const SESSIONS: usize = 4;

/// The files of one identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The fleet's CA.
    pub ca: PathBuf,
    /// The device's certificate chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl From<&config::Collector> for Files {
    fn from(collector: &config::Collector) -> Self {
        let config::Collector { ca, certificate, key, .. } = collector;
        let directory = std::env::var_os(CREDENTIALS).map(PathBuf::from);
        let place = |file: &Path| lent(file, directory.as_deref());
        Files { ca: place(ca), certificate: place(certificate), key: place(key) }
    }
}

/// Where the service manager has put files that it lends to this service: systemd's
/// `LoadCredential=`.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// The file with the name of `file` in the folder of lent files, if there is one, else `file`.
fn lent(file: &Path, directory: Option<&Path>) -> PathBuf {
    let credential = directory.zip(file.file_name()).map(|(folder, name)| folder.join(name));
    credential.filter(|path| path.is_file()).unwrap_or_else(|| file.to_path_buf())
}

/// Why there is no identity to connect with.
#[derive(Debug)]
pub enum SetupError {
    /// A file cannot be read.
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else than it should.
    Contents {
        /// The file.
        file: PathBuf,
        /// What is wrong, and the remedy.
        text: String,
    },
}

impl SetupError {
    fn contents(file: &Path, text: impl Into<String>) -> Self {
        SetupError::Contents { file: file.into(), text: text.into() }
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetupError::Read { file, source } => write!(f, "{}: {source}", file.display()),
            SetupError::Contents { file, text } => write!(f, "{}: {text}", file.display()),
        }
    }
}

impl std::error::Error for SetupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SetupError::Read { source, .. } => Some(source),
            SetupError::Contents { .. } => None,
        }
    }
}

/// What a connection needs.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The id in the device's certificate.
    pub agent_id: String,
    /// The device's certificate.
    pub certificate: Certificate,
    /// For rustls.
    pub client: Arc<ClientConfig>,
    /// What signs seals, if the key is of a kind that does.
    pub seal_key: Option<Arc<SealKey>>,
    /// Where all of it is from.
    pub files: Files,
    stamps: [Option<Stamp>; 3],
}

impl Credentials {
    /// Reads the files. `expected_id` is the id that the configuration gives, or the one of
    /// the certificate before this one.
    ///
    /// # Errors
    /// If a file cannot be read, key and certificate are no pair, or the id is missing or
    /// another one.
    pub fn load(
        files: &Files,
        expected_id: Option<&str>,
        clock: &Arc<Clock>,
    ) -> Result<Credentials, SetupError> {
        // Stamps first: a file that changes meanwhile is read again.
        let stamps = stamps(files);
        let chain = certificates(&files.certificate)?;
        let certificate = leaf(&files.certificate, &chain)?;
        let agent_id = identity(&files.certificate, &certificate, expected_id)?;
        let key = key(&files.key)?;
        let seal_key = SealKey::of(&key).map(Arc::new);
        let verifier = Verifier::new(roots(&files.ca)?, provider())
            .map_err(|error| SetupError::contents(&files.ca, error.to_string()))?;
        let mut client = ClientConfig::builder_with_details(provider(), Arc::clone(clock) as _)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| SetupError::contents(&files.ca, error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(chain, key)
            .map_err(|error| pair_error(files, &error))?;
        client.resumption = Resumption::in_memory_sessions(SESSIONS);
        let client = Arc::new(client);
        clock.own_certificate(certificate.not_after);
        Ok(Credentials { agent_id, certificate, client, seal_key, files: files.clone(), stamps })
    }

    /// Whether a file is another one than when it was read, or was changed.
    pub fn changed(&self) -> bool {
        stamps(&self.files) != self.stamps
    }
}

/// The only provider of cryptography: ring.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The id that `certificate` carries, if it is the expected one.
pub(crate) fn identity(
    file: &Path,
    certificate: &Certificate,
    expected: Option<&str>,
) -> Result<String, SetupError> {
    let id =
        certificate.agent_id().map_err(|error| SetupError::contents(file, error.to_string()))?;
    match expected {
        Some(expected) if expected != id => Err(SetupError::contents(
            file,
            format!("is for agent {id:?}, this is {expected:?} (agent.id, or the id at start)"),
        )),
        _ => Ok(id.to_string()),
    }
}

pub(crate) fn leaf(file: &Path, chain: &[CertificateDer<'_>]) -> Result<Certificate, SetupError> {
    let first = chain.first().map(AsRef::as_ref).unwrap_or_default();
    Certificate::parse(first)
        .ok_or_else(|| SetupError::contents(file, "is not a certificate of X.509 version 3"))
}

pub(crate) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
    match all {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(SetupError::contents(file, "holds no certificate in PEM form")),
        Err(error) => Err(pem_error(file, &error)),
    }
}

pub(crate) fn key(file: &Path) -> Result<PrivateKeyDer<'static>, SetupError> {
    match PrivateKeyDer::from_pem_slice(&read(file)?) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => {
            Err(SetupError::contents(file, "holds no private key in PEM form, without password"))
        }
        Err(error) => Err(pem_error(file, &error)),
    }
}

pub(crate) fn roots(file: &Path) -> Result<RootCertStore, SetupError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| SetupError::contents(file, error.to_string()))?;
    }
    Ok(roots)
}

pub(crate) fn pair_error(files: &Files, error: &rustls::Error) -> SetupError {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            let certificate = files.certificate.display();
            SetupError::contents(&files.key, format!("is not the key of {certificate}"))
        }
        error => SetupError::contents(&files.key, format!("cannot be used: {error}")),
    }
}

fn pem_error(file: &Path, error: &pem::Error) -> SetupError {
    SetupError::contents(file, format!("is not in PEM form: {error}"))
}

fn read(file: &Path) -> Result<Vec<u8>, SetupError> {
    std::fs::read(file).map_err(|source| SetupError::Read { file: file.into(), source })
}

/// What tells a file from what it was: device, number, size, and (s, ns) the time of its contents,
/// which a copy may take over, and of its last change, which nobody sets.
type Stamp = ([u64; 3], [i64; 4]);

fn stamps(files: &Files) -> [Option<Stamp>; 3] {
    [&files.ca, &files.certificate, &files.key].map(|file| {
        let of = std::fs::metadata(file).ok()?;
        let times = [of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()];
        Some(([of.dev(), of.ino(), of.size()], times))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_time_of_change_is_another_one_whatever_its_own_time_says() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, name).unwrap();
            path
        };
        let (ca, certificate, key) = (file("ca.pem"), file("agent.pem"), file("agent.key"));
        let files = Files { ca, certificate: certificate.clone(), key };
        let before = stamps(&files);
        assert_eq!(stamps(&files), before);
        // Of the same size and age.
        let time = std::fs::metadata(&certificate).unwrap().modified().unwrap();
        let other = file("other.pem");
        std::fs::File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
        std::fs::rename(&other, &certificate).unwrap();
        assert_eq!(std::fs::metadata(&certificate).unwrap().modified().unwrap(), time);
        assert_ne!(stamps(&files), before);
    }

    #[test]
    fn a_credential_stands_in_for_the_file_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("agent.key"), "lent").unwrap();
        let key = Path::new("/etc/sysflow/agent.key");
        assert_eq!(lent(key, Some(folder.path())), folder.path().join("agent.key"));
        assert_eq!(lent(key, None), key);
        let certificate = Path::new("/etc/sysflow/agent.pem");
        assert_eq!(lent(certificate, Some(folder.path())), certificate);
    }
}
