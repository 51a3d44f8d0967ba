//! The certificates that agents showed: what their seals are signed with.
//!
//! The store keeps each certificate with which frames came, so that signatures can be checked years
//! later, on another machine, without the devices. Certificates go in; what comes out says of a seal
//! whether its device signed it. In memory is one key a certificate.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use codec::{Header, SignatureScheme};
use ring::digest::{SHA256, digest};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{layout, tls};

/// What is known of the signature of a seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// A certificate of the agent proves it.
    Signed,
    /// There is none.
    Unsigned,
    /// The certificate that it names is not there to check it with.
    Unchecked,
    /// Only a certificate of a given CA is believed, and none proves it.
    Missing,
    /// The certificate that it names does not prove it.
    Wrong,
}

/// The public keys of agents.
#[derive(Default)]
pub(crate) struct Certificates {
    keys: BTreeMap<String, Vec<Vec<u8>>>,
    authority: Option<Arc<dyn ClientCertVerifier>>,
}

/// A chain as it is kept: PEM.
pub(crate) fn to_pem(chain: &[CertificateDer<'_>]) -> String {
    let parts = chain.iter().map(|part| pem::Pem::new("CERTIFICATE", part.as_ref()));
    pem::encode_many_config(
        &parts.collect::<Vec<_>>(),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}

/// The name of a chain's file: the SHA-256 of its first certificate.
pub(crate) fn file_name(chain: &[CertificateDer<'_>]) -> String {
    let first = chain.first().map(AsRef::as_ref).unwrap_or_default();
    layout::hex(digest(&SHA256, first).as_ref()) + ".pem"
}

impl Certificates {
    /// Believes only certificates of the CAs in `file`, as they were when they were issued.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub(crate) fn of_authority(file: &Path) -> Result<Certificates, String> {
        let authority = Some(tls::verifier("--ca", file, Vec::new())?);
        Ok(Certificates { authority, ..Certificates::default() })
    }

    /// Whether only the certificates of a given CA are believed.
    pub(crate) fn is_strict(&self) -> bool {
        self.authority.is_some()
    }

    /// Takes in the certificates in an agent's folder of a store; none are there in a store of
    /// before. Returns the files that are no certificates, or not of the CA, and why.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn load(&mut self, agent: &Path) -> io::Result<Vec<(PathBuf, String)>> {
        let entries = match fs::read_dir(agent.join(layout::CERTIFICATES)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut refused = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "pem")
                && let Err(why) = self.file(&path)
            {
                refused.push((path, why));
            }
        }
        Ok(refused)
    }

    fn file(&mut self, path: &Path) -> Result<(), String> {
        let chain: Vec<CertificateDer<'_>> = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|error| error.to_string())?;
        let (first, above) = chain.split_first().ok_or("holds no certificate in PEM form")?;
        let agent = tls::agent_id(first)?;
        let parsed: Vec<X509Certificate<'_>> = chain
            .iter()
            .map(|part| X509Certificate::from_der(part).map(|(_, parsed)| parsed))
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        if let Some(authority) = &self.authority {
            // It proves what it signed while it was valid, whether it is now or not: as of when all
            // of the chain had begun.
            let begun = parsed.iter().map(|part| part.validity().not_before.timestamp()).max();
            let issued_s = begun.and_then(|begun| u64::try_from(begun).ok()).unwrap_or(0);
            let issued = UnixTime::since_unix_epoch(Duration::from_secs(issued_s));
            authority
                .verify_client_cert(first, above, issued)
                .map_err(|error| format!("is not of the CA that is to be believed: {error}"))?;
        }
        let key = parsed.first().map(|leaf| leaf.public_key().subject_public_key.data.to_vec());
        self.keys.entry(agent).or_default().extend(key);
        Ok(())
    }

    /// What is known of the signature of the seal that a frame carries. `agent` is the agent that
    /// the frame names.
    pub(crate) fn prove(&self, agent: &str, header: &Header<'_>) -> Proof {
        match self.weigh(agent, header) {
            Proof::Unsigned | Proof::Unchecked if self.authority.is_some() => Proof::Missing,
            proof => proof,
        }
    }

    fn weigh(&self, agent: &str, header: &Header<'_>) -> Proof {
        let (Some(seal), Some(start), Some(signature)) =
            (&header.seal, &header.start, &header.signature)
        else {
            return Proof::Unsigned;
        };
        let keys = self.keys.get(agent).map(Vec::as_slice).unwrap_or_default();
        let mut named = keys.iter().filter(|key| name_of(key) == Some(signature.key)).peekable();
        if named.peek().is_none() {
            return Proof::Unchecked;
        }
        let class = header.key.class;
        let Some(message) = seal.message(agent, &start.boot_id, &start.run_id, class) else {
            return Proof::Wrong;
        };
        let algorithm: &dyn VerificationAlgorithm = match signature.scheme {
            SignatureScheme::EcdsaP256Sha256 => &ECDSA_P256_SHA256_FIXED,
            SignatureScheme::EcdsaP384Sha384 => &ECDSA_P384_SHA384_FIXED,
            SignatureScheme::Ed25519 => &ED25519,
        };
        let mut proves = |key: &Vec<u8>| {
            UnparsedPublicKey::new(algorithm, key).verify(&message, &signature.bytes).is_ok()
        };
        if named.any(&mut proves) { Proof::Signed } else { Proof::Wrong }
    }
}

/// What signatures name a public key by.
fn name_of(key: &[u8]) -> Option<[u8; 8]> {
    digest(&SHA256, key).as_ref().first_chunk().copied()
}
