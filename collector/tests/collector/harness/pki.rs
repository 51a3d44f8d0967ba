//! A throw-away certificate authority and what it signs.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, RevocationReason, RevokedCertParams,
    SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

/// A certificate with its key.
pub(crate) struct Identity {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    serial: Vec<u8>,
}

impl Identity {
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(self.certificate_pem.as_bytes()).unwrap()]
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).unwrap()
    }
}

/// A certificate authority.
pub(crate) struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// An authority of this name, with a new key.
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Pki { issuer }
    }

    pub(crate) fn ca_pem(&self) -> String {
        self.issuer.pem()
    }

    pub(crate) fn ca(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// The collector's certificate.
    pub(crate) fn server(&self) -> Identity {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// A good certificate of an agent.
    pub(crate) fn agent(&self, id: &str) -> Identity {
        self.sign(client(&[&format!("sysflow:agent:{id}")]))
    }

    /// A certificate with these SAN URIs; its common name is a good agent id.
    pub(crate) fn with_uris(&self, uris: &[&str]) -> Identity {
        self.sign(client(uris))
    }

    /// An agent's certificate that was good until yesterday.
    pub(crate) fn expired(&self, id: &str) -> Identity {
        let mut params = client(&[&format!("sysflow:agent:{id}")]);
        let day = time::Duration::days(1);
        params.not_before = OffsetDateTime::now_utc() - 2 * day;
        params.not_after = OffsetDateTime::now_utc() - day;
        self.sign(params)
    }

    /// An agent's certificate that is good for so many seconds more.
    pub(crate) fn brief(&self, id: &str, seconds: i64) -> Identity {
        let mut params = client(&[&format!("sysflow:agent:{id}")]);
        params.not_after = OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
        self.sign(params)
    }

    /// An agent's certificate that will be good from tomorrow on.
    pub(crate) fn early(&self, id: &str) -> Identity {
        let mut params = client(&[&format!("sysflow:agent:{id}")]);
        params.not_before = OffsetDateTime::now_utc() + time::Duration::days(1);
        self.sign(params)
    }

    /// The list of revoked certificates, which is to be renewed so many days from now.
    pub(crate) fn revocation_list(&self, revoked: &[&Identity], days: i64) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked_certs = revoked.iter().map(|identity| RevokedCertParams {
            serial_number: identity.serial.clone().into(),
            revocation_time: now,
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: now - time::Duration::days(10),
            next_update: now + time::Duration::days(days),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    fn sign(&self, mut params: CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        // Positive, and without leading zeros.
        let serial: Vec<u8> =
            key.public_key_raw()[1..17].iter().map(|byte| byte & 0x7f | 1).collect();
        params.serial_number = Some(serial.clone().into());
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem(), serial }
    }
}

fn client(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "gw-1");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names =
        uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params
}
