//! A throw-away certificate authority for a fleet: for demonstrations and tests.
//!
//! An agent's identity is the SAN URI `sysflow:agent:<id>` of its certificate, never the
//! common name. Keys are ECDSA P-256, written readable for their owner only. The CA's name
//! contains a random number, so that two throw-away CAs are told apart by name.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use x509_parser::pem::{Pem, parse_x509_pem};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::Result;

/// Longest agent id, bytes.
const AGENT_ID_BYTES_MAX: usize = 63;
/// Devices boot with clocks that are behind; a certificate of today must serve them too.
const CLOCK_SLACK: Duration = Duration::days(1);

/// What to issue.
#[derive(Clone, Debug)]
pub struct Options {
    /// Id of the agent: `[a-z0-9][a-z0-9._-]{0,62}`.
    pub agent_id: String,
    /// Id in the certificate's SAN, where it is to differ from `agent_id`; it is not checked,
    /// so that tests can try what a collector makes of it.
    pub san_id: Option<String>,
    /// Names and addresses of the collector.
    pub hosts: Vec<String>,
    /// How long certificates are valid, days, at least 1.
    pub days: u32,
    /// Whether the agent's certificate has expired already.
    pub is_expired: bool,
    /// Name of the agent's two files without their ending.
    pub file_stem: String,
    /// Certificates to revoke; if there are any, nothing is issued.
    pub revoked: Vec<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            agent_id: "gw-0001".to_string(),
            san_id: None,
            hosts: ["localhost", "127.0.0.1", "::1"].map(str::to_string).to_vec(),
            days: 90,
            is_expired: false,
            file_stem: "agent".to_string(),
            revoked: Vec::new(),
        }
    }
}

/// Makes `ca.pem` and `ca.key` in `directory` unless they are there, and, signed by them,
/// `collector.pem`, `collector.key` and the agent's two files. With certificates to revoke it
/// writes `crl.pem` instead: the CA's list of them and of those that were on it before.
///
/// # Errors
/// Names the option or the file that cannot be used.
pub fn make(directory: &Path, options: &Options) -> Result {
    check(options)?;
    std::fs::create_dir_all(directory).map_err(|e| format!("make {}: {e}", directory.display()))?;
    let issuer = authority(directory, options.days)?;
    if !options.revoked.is_empty() {
        return revoke(directory, options, &issuer);
    }
    let now = OffsetDateTime::now_utc();
    let end = now + Duration::days(options.days.into());

    let mut collector = leaf("collector", now - CLOCK_SLACK, end)?;
    for host in &options.hosts {
        collector.subject_alt_names.push(match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.as_str().try_into()?),
        });
    }
    collector.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    issue(directory, "collector", &collector, &issuer)?;

    let end = if options.is_expired { now - Duration::hours(1) } else { end };
    let mut agent = leaf(&options.agent_id, now - CLOCK_SLACK, end)?;
    let id = options.san_id.as_ref().unwrap_or(&options.agent_id);
    let uri = format!("sysflow:agent:{id}");
    agent.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
    agent.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    issue(directory, &options.file_stem, &agent, &issuer)
}

fn revoke(directory: &Path, options: &Options, issuer: &Issuer<'_, KeyPair>) -> Result {
    let list = directory.join("crl.pem");
    let now = OffsetDateTime::now_utc();
    let mut serials = BTreeSet::new();
    if list.exists() {
        let pem = pem(&list)?;
        let (_, former) = CertificateRevocationList::from_der(&pem.contents)
            .map_err(|e| format!("{}: {e} (remove it to start anew)", list.display()))?;
        serials.extend(former.iter_revoked_certificates().map(|one| one.raw_serial().to_vec()));
    }
    for file in &options.revoked {
        let pem = pem(file)?;
        let (_, certificate) = X509Certificate::from_der(&pem.contents)
            .map_err(|e| format!("{}: {e}", file.display()))?;
        serials.insert(certificate.raw_serial().to_vec());
    }
    let revoked_certs = serials.iter().map(|serial| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    });
    let params = CertificateRevocationListParams {
        this_update: now - CLOCK_SLACK,
        next_update: now + Duration::days(options.days.into()),
        crl_number: SerialNumber::from(now.unix_timestamp().unsigned_abs()),
        issuing_distribution_point: None,
        revoked_certs: revoked_certs.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    write(&list, &params.signed_by(issuer)?.pem()?, Readers::All)
}

/// The first thing in a PEM file.
fn pem(file: &Path) -> Result<Pem> {
    let text = std::fs::read(file).map_err(|e| format!("read {}: {e}", file.display()))?;
    let (_, pem) = parse_x509_pem(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(pem)
}

fn check(options: &Options) -> Result {
    let id = &options.agent_id;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_id = id.len() <= AGENT_ID_BYTES_MAX
        && id.bytes().next().is_some_and(plain)
        && id.bytes().all(|byte| plain(byte) || b"._-".contains(&byte));
    if !is_id {
        return Err(format!("--agent {id:?}: not of the form [a-z0-9][a-z0-9._-]{{0,62}}").into());
    }
    if options.days == 0 {
        return Err("--days 0: at least 1".into());
    }
    let stem = &options.file_stem;
    if stem.is_empty() || stem.contains('/') || ["ca", "collector"].contains(&stem.as_str()) {
        return Err(format!("--as {stem:?}: a file name other than ca and collector").into());
    }
    Ok(())
}

/// The CA of the folder, made if it is missing.
fn authority(directory: &Path, days: u32) -> Result<Issuer<'static, KeyPair>> {
    let (certificate, key) = (directory.join("ca.pem"), directory.join("ca.key"));
    let name_file = directory.join("ca.name");
    if certificate.exists() && key.exists() && name_file.exists() {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))
        };
        let pair = KeyPair::from_pem(&read(&key)?)
            .map_err(|e| format!("{}: {e} (remove the folder to start anew)", key.display()))?;
        return Ok(Issuer::new(authority_params(read(&name_file)?.trim(), days), pair));
    }
    let pair = KeyPair::generate()?;
    // Eight bytes of a fresh public key are as good as a random number.
    let tag: String =
        pair.public_key_raw().iter().skip(1).take(8).map(|b| format!("{b:02x}")).collect();
    let name = format!("SysFlow Edge throw-away CA {tag}");
    let params = authority_params(&name, days);
    write(&certificate, &params.self_signed(&pair)?.pem(), Readers::All)?;
    write(&key, &pair.serialize_pem(), Readers::Owner)?;
    write(&name_file, &name, Readers::All)?;
    Ok(Issuer::new(params, pair))
}

fn authority_params(name: &str, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SLACK;
    params.not_after = now + Duration::days(days.into());
    params
}

fn leaf(name: &str, from: OffsetDateTime, to: OffsetDateTime) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.not_before = from;
    params.not_after = to;
    Ok(params)
}

fn issue(
    directory: &Path,
    stem: &str,
    params: &CertificateParams,
    issuer: &Issuer<'_, KeyPair>,
) -> Result {
    let pair = KeyPair::generate()?;
    let certificate = params.signed_by(&pair, issuer)?;
    write(&directory.join(format!("{stem}.pem")), &certificate.pem(), Readers::All)?;
    write(&directory.join(format!("{stem}.key")), &pair.serialize_pem(), Readers::Owner)
}

/// Who may read a file.
#[derive(Clone, Copy)]
enum Readers {
    All,
    Owner,
}

fn write(path: &Path, text: &str, readers: Readers) -> Result {
    let mode = match readers {
        Readers::All => 0o644,
        Readers::Owner => 0o600,
    };
    let named = |e: std::io::Error| format!("write {}: {e}", path.display());
    // A file that is there may have other rights: it is made anew, never opened.
    if path.exists() {
        std::fs::remove_file(path).map_err(named)?;
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(named)?;
    Ok(file.write_all(text.as_bytes()).map_err(named)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_second_call_keeps_the_authority_and_issues_anew() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        make(folder.path(), &Options::default()).unwrap();
        let (ca, agent) = (read("ca.pem"), read("agent.pem"));
        let other = Options { file_stem: "other".to_string(), ..Options::default() };
        make(folder.path(), &other).unwrap();
        assert_eq!(read("ca.pem"), ca);
        assert_eq!(read("agent.pem"), agent);
        assert_ne!(read("other.pem"), agent);
    }

    #[test]
    fn only_the_owner_reads_keys() {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), &Options::default()).unwrap();
        for key in ["ca.key", "collector.key", "agent.key"] {
            let mode = std::fs::metadata(folder.path().join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn a_revocation_list_grows() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let listed = || {
            let pem = pem(&file("crl.pem")).unwrap();
            let (_, list) = CertificateRevocationList::from_der(&pem.contents).unwrap();
            list.iter_revoked_certificates()
                .map(|one| one.raw_serial().to_vec())
                .collect::<Vec<_>>()
        };
        let serial = |name: &str| {
            let pem = pem(&file(name)).unwrap();
            X509Certificate::from_der(&pem.contents).unwrap().1.raw_serial().to_vec()
        };
        make(folder.path(), &Options::default()).unwrap();
        let revoke = |name: &str| Options { revoked: vec![file(name)], ..Options::default() };
        make(folder.path(), &revoke("agent.pem")).unwrap();
        assert_eq!(listed(), [serial("agent.pem")]);
        make(folder.path(), &revoke("collector.pem")).unwrap();
        assert_eq!(listed().len(), 2);
        assert!(listed().contains(&serial("collector.pem")));
        let error = make(folder.path(), &revoke("agent.key")).unwrap_err().to_string();
        assert!(error.contains("agent.key"), "{error}");
    }

    #[test]
    fn an_id_that_no_collector_takes_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for id in ["", "GW", "a/b", "-a", &"x".repeat(64)] {
            let options = Options { agent_id: id.to_string(), ..Options::default() };
            assert!(make(folder.path(), &options).is_err(), "{id:?}");
        }
    }
}
