//! Why TLS failed, in words: which side refused, and why.

use std::fmt;

use rustls::{AlertDescription, CertificateError, Error};

use super::Files;

/// A failure of TLS as an operator reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    text: String,
    is_expiry: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

impl Fault {
    pub(super) fn new(error: &Error, files: &Files) -> Fault {
        let text = match error {
            Error::AlertReceived(alert) => collector_refused(*alert, files),
            Error::InvalidCertificate(error) => we_refused(error, files),
            Error::NoCertificatesPresented => "collector presented no certificate".into(),
            Error::InvalidMessage(_) => {
                format!("what answers is not TLS ({error}): check collector.url")
            }
            error => format!("TLS with the collector failed: {error}"),
        };
        let is_expiry = matches!(
            error,
            Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            )
        );
        Fault { text, is_expiry }
    }

    /// Whether the collector's certificate is over by our clock: one of them is wrong.
    pub fn is_expiry(&self) -> bool {
        self.is_expiry
    }
}

fn collector_refused(alert: AlertDescription, files: &Files) -> String {
    let why = match alert {
        AlertDescription::CertificateRequired => {
            return "collector requires a client certificate and got none that it accepts: check \
                    collector.certificate"
                .into();
        }
        AlertDescription::CertificateExpired => "certificate expired",
        AlertDescription::CertificateRevoked => "certificate revoked",
        AlertDescription::UnknownCA => "it is not signed by the CA that the collector trusts",
        // Two CAs of one name: the collector found its own and then the signature did not fit.
        AlertDescription::DecryptError => {
            "its signature is not by the CA that the collector trusts"
        }
        AlertDescription::BadCertificate => "certificate not valid",
        AlertDescription::UnsupportedCertificate => "certificate of a kind that it does not take",
        AlertDescription::CertificateUnknown => "certificate not accepted",
        AlertDescription::AccessDenied => "access denied",
        // How servers of TLS 1.2 say that they miss a certificate, among other things.
        AlertDescription::HandshakeFailure => {
            return "collector ended the handshake: no common cipher, or our certificate is not \
                    accepted"
                .into();
        }
        AlertDescription::ProtocolVersion => {
            return "collector speaks neither TLS 1.3 nor TLS 1.2".into();
        }
        other => return format!("collector ended TLS with the alert {other:?}"),
    };
    format!("collector refused our certificate: {why} ({})", files.certificate.display())
}

fn we_refused(error: &CertificateError, files: &Files) -> String {
    let ca = files.ca.display();
    match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("collector's certificate is not signed by our CA ({ca})")
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "collector's certificate expired at Unix time {}, our clock says {}",
            not_after.as_secs(),
            time.as_secs()
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "collector's certificate is not valid before Unix time {}, our clock says {}",
            not_before.as_secs(),
            time.as_secs()
        ),
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "collector's certificate is for {}, not for {} (collector.url)",
            presented.join(", "),
            expected.to_str()
        ),
        CertificateError::InvalidPurposeContext { .. } | CertificateError::InvalidPurpose => {
            "collector's certificate is not one for servers (extended key usage)".into()
        }
        CertificateError::Revoked => "collector's certificate is revoked".into(),
        other => format!("collector's certificate is not valid: {other}"),
    }
}
