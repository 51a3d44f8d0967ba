//! Mutual TLS: who may connect, who a client is, and why a handshake was refused.
//!
//! A client needs a certificate of the fleet's CA; what it may say is decided by the id in
//! that certificate (SAN URI `sysflow:agent:<id>`), never by its common name. TLS 1.3 only:
//! both ends are ours. A revocation list is checked when it is read: one that only failed in
//! handshakes would lock the whole fleet out. For the same reason a list that is past its time
//! stays in use, with a warning, and certificates of a CA without a list are not checked.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::{CertificateError, RootCertStore, ServerConfig};
use x509_parser::prelude::{
    ASN1Time, CertificateRevocationList, FromDer, GeneralName, X509Certificate,
};

use crate::config;
use crate::layout;

const AGENT_URI: &str = "sysflow:agent:";

/// Sessions that can be resumed; of more, the oldest take a whole handshake.
const SESSIONS: usize = 4096;

/// The server side of TLS.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// For new connections.
    pub(crate) config: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Server {
    /// Whether the certificate of a client is good now. A connection may last, and a session that is
    /// resumed has its certificate from the handshake that began it: it may have expired meanwhile.
    ///
    /// # Errors
    /// Why it is not, for the answer.
    pub(crate) fn check(&self, chain: &[CertificateDer<'_>]) -> Result<(), String> {
        let (first, above) = chain.split_first().ok_or("no certificate")?;
        self.verifier
            .verify_client_cert(first, above, UnixTime::now())
            .map(|_| ())
            .map_err(|error| format!("certificate is not valid any more: {error}"))
    }
}

/// What client certificates are held against: the CAs in `ca`, a file that `setting` names, and
/// revocation lists.
///
/// # Errors
/// Names the file and what is wrong with it.
pub(crate) fn verifier(
    setting: &str,
    ca: &Path,
    lists: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(setting, ca)? {
        roots.add(certificate).map_err(|error| named(ca, &error))?;
    }
    let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    if !lists.is_empty() {
        verifier = verifier.with_crls(lists).allow_unknown_revocation_status();
    }
    verifier.build().map_err(|error| named(ca, &error))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn named(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

/// Names the file, what is wrong with it, and the setting that names the file.
fn unreadable<'a>(setting: &'a str, path: &'a Path) -> impl Fn(pem::Error) -> String + 'a {
    move |error| match error {
        pem::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => {
            named(path, &format_args!("{error}: put it there, or set {setting}"))
        }
        pem::Error::Io(error) => {
            named(path, &format_args!("{error}: make it readable, or set {setting}"))
        }
        error => named(path, &format_args!("{error}: {setting} must be a file in PEM form")),
    }
}

/// The server side of TLS by the configuration's files.
///
/// # Errors
/// Names the file and what is wrong with it.
pub(crate) fn server(tls: &config::Tls) -> Result<Server, String> {
    let verifier = verifier("tls.ca", &tls.ca, revocation_lists(tls)?)?;
    let chain = certificates("tls.certificate", &tls.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(unreadable("tls.key", &tls.key))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            let builder = builder.with_client_cert_verifier(Arc::clone(&verifier));
            builder.with_single_cert(chain, key)
        })
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                let certificate = tls.certificate.display();
                named(&tls.key, &format_args!("is not the key of {certificate}: take its own"))
            }
            error => named(&tls.certificate, &error),
        })?;
    // A ticket is a number here, good for one resumption; what it stands for stays in memory, and
    // goes with these rules.
    config.send_tls13_tickets = 1;
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    Ok(Server { config: Arc::new(config), verifier })
}

/// The lists of `tls.crl`, each signed by a CA of `tls.ca`.
fn revocation_lists(
    tls: &config::Tls,
) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let authorities = certificates("tls.ca", &tls.ca)?;
    let mut lists = Vec::new();
    for path in &tls.crl {
        let named = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
        let found: Vec<_> = CertificateRevocationListDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(unreadable("tls.crl", path))?;
        if found.is_empty() {
            return Err(named(&"holds no revocation list in PEM form (X509 CRL)"));
        }
        for list in &found {
            let (_, parsed) = CertificateRevocationList::from_der(list)
                .map_err(|error| named(&format_args!("list cannot be read: {error}")))?;
            let is_signer = |authority: &CertificateDer<'_>| {
                X509Certificate::from_der(authority).is_ok_and(|(_, authority)| {
                    authority.subject() == parsed.issuer()
                        && parsed.verify_signature(authority.public_key()).is_ok()
                })
            };
            if !authorities.iter().any(is_signer) {
                return Err(named(&format_args!(
                    "is not signed by a CA of {}: take the list of the fleet's CA",
                    tls.ca.display()
                )));
            }
        }
        lists.extend(found);
    }
    Ok(lists)
}

/// Warns of revocation lists that should have been renewed; they stay in use.
pub(crate) fn warn_of_old_lists(tls: &config::Tls) {
    for path in &tls.crl {
        let lists = CertificateRevocationListDer::pem_file_iter(path).into_iter().flatten();
        for list in lists.flatten() {
            if let Ok((_, parsed)) = CertificateRevocationList::from_der(&list)
                && let Some(next) = parsed.next_update()
                && next < ASN1Time::now()
            {
                log::warn!(
                    "{}: was to be renewed by {next}; it stays in use: take a newer list",
                    path.display()
                );
            }
        }
    }
}

/// The certificates of a file that is named by `setting`.
fn certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(unreadable(setting, path))?;
    if certificates.is_empty() {
        return Err(unreadable(setting, path)(pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

/// The agent id in a client's certificate.
///
/// # Errors
/// Why there is none that can be used, for the answer.
pub(crate) fn agent_id(certificate: &CertificateDer<'_>) -> Result<String, String> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("certificate cannot be read: {error}"))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| format!("subject alternative name cannot be read: {error}"))?;
    let mut ids =
        names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(AGENT_URI),
            _ => None,
        });
    let id = ids.next().ok_or(
        "certificate has no SAN URI sysflow:agent:<id>: issue one that has it (the common name \
         does not count)",
    )?;
    if ids.next().is_some() {
        return Err("certificate has more than one SAN URI sysflow:agent:<id>: issue one with a \
                    single id"
            .to_owned());
    }
    if !layout::is_agent_id(id) {
        return Err(format!(
            "agent id {id:?} in the certificate is not of the form [a-z0-9][a-z0-9._-]{{0,62}}: \
             issue one with such an id"
        ));
    }
    Ok(id.to_owned())
}

/// The name under which a failed handshake is counted and logged.
pub(crate) fn handshake_refusal(error: &io::Error) -> &'static str {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return match error.kind() {
            io::ErrorKind::TimedOut => "timeout",
            _ => "connection-lost",
        };
    };
    match tls {
        rustls::Error::NoCertificatesPresented => "no-certificate",
        rustls::Error::InvalidCertificate(reason) => match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "not-valid-yet"
            }
            CertificateError::Revoked => "revoked",
            CertificateError::UnknownIssuer => "unknown-issuer",
            // A CA of the same name with another key.
            CertificateError::BadSignature => "bad-signature",
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "wrong-purpose"
            }
            _ => "bad-certificate",
        },
        rustls::Error::AlertReceived(_) => "refused-by-client",
        rustls::Error::PeerIncompatible(_) => "incompatible",
        _ => "not-tls",
    }
}
