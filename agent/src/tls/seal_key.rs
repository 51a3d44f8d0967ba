//! The device's key, where it signs seals: what the store of a collector says of this device can
//! be held against the device's certificate later, by whoever trusts the fleet's CA.
//!
//! A private key goes in, signatures of fixed size come out. The event path signs, and takes no
//! memory for it; the upload thread puts another key in its place once a collector has taken frames
//! with its certificate: one that never did is not in the store. RSA keys
//! sign nothing: on small processors one signature takes a tenth of a second, and 256 bytes.

use std::sync::{Arc, Mutex, PoisonError};

use codec::{Signature, SignatureScheme};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _,
};
use rustls::pki_types::PrivateKeyDer;

use crate::batch::Signer;

/// What a SEC 1 key (RFC 5915) lacks to be PKCS #8 (RFC 5208): version and algorithm, by curve.
const VERSION: [u8; 3] = [0x02, 0x01, 0x00];
const P256: [u8; 21] = [
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
    0xce, 0x3d, 0x03, 0x01, 0x07,
];
const P384: [u8; 18] = [
    0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04,
    0x00, 0x22,
];

const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;

/// A key that signs seals.
#[derive(Debug)]
pub struct SealKey {
    pair: Pair,
    /// What signatures name it by.
    name: [u8; 8],
}

#[derive(Debug)]
enum Pair {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl SealKey {
    /// The key, if it is of a kind that signs.
    pub fn of(key: &PrivateKeyDer<'_>) -> Option<SealKey> {
        let ecdsa = |algorithm: &'static EcdsaSigningAlgorithm, curve: &[u8]| {
            let random = SystemRandom::new();
            match key {
                PrivateKeyDer::Sec1(key) => {
                    let bytes = pkcs8(curve, key.secret_sec1_der());
                    EcdsaKeyPair::from_pkcs8(algorithm, &bytes, &random).ok()
                }
                PrivateKeyDer::Pkcs8(key) => {
                    EcdsaKeyPair::from_pkcs8(algorithm, key.secret_pkcs8_der(), &random).ok()
                }
                _ => None,
            }
        };
        let ed25519 = || match key {
            PrivateKeyDer::Pkcs8(key) => {
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.secret_pkcs8_der()).ok()
            }
            _ => None,
        };
        let pair = ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING, &P256)
            .map(Pair::P256)
            .or_else(|| ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING, &P384).map(Pair::P384))
            .or_else(|| ed25519().map(Pair::Ed25519))?;
        let digest = digest(&SHA256, pair.public_key());
        let name = *digest.as_ref().first_chunk()?;
        Some(SealKey { pair, name })
    }

    fn sign(&self, message: &[u8]) -> Option<Signature> {
        let ecdsa = |key: &EcdsaKeyPair| key.sign(&SystemRandom::new(), message).ok();
        let (scheme, signature) = match &self.pair {
            Pair::P256(key) => (SignatureScheme::EcdsaP256Sha256, ecdsa(key)?),
            Pair::P384(key) => (SignatureScheme::EcdsaP384Sha384, ecdsa(key)?),
            Pair::Ed25519(key) => (SignatureScheme::Ed25519, key.sign(message)),
        };
        let bytes = signature.as_ref().try_into().ok()?;
        Some(Signature { scheme, key: self.name, bytes })
    }
}

impl Pair {
    fn public_key(&self) -> &[u8] {
        match self {
            Pair::P256(key) | Pair::P384(key) => key.public_key().as_ref(),
            Pair::Ed25519(key) => key.public_key().as_ref(),
        }
    }
}

/// A SEC 1 key as PKCS #8.
fn pkcs8(curve: &[u8], key: &[u8]) -> Vec<u8> {
    let inside = [&VERSION[..], curve, &element(OCTET_STRING, key)].concat();
    element(SEQUENCE, &inside)
}

/// A DER element; its content has less than 64 KiB.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = (content.len() as u16).to_be_bytes();
    let length: &[u8] = match content.len() {
        0..0x80 => &[low],
        0x80..0x100 => &[0x81, low],
        _ => &[0x82, high, low],
    };
    [&[tag], length, content].concat()
}

/// The key in use, shared by who signs and who renews it; none signs nothing.
#[derive(Clone, Debug, Default)]
pub struct Sealer(Arc<Mutex<Option<Arc<SealKey>>>>);

impl Sealer {
    /// Signs with this key.
    pub fn new(key: Option<Arc<SealKey>>) -> Sealer {
        Sealer(Arc::new(Mutex::new(key)))
    }

    /// From now on signs with another key.
    pub fn renew(&self, key: Option<Arc<SealKey>>) {
        // One assignment: there is nothing half done.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = key;
    }
}

impl Signer for Sealer {
    fn sign(&mut self, message: &[u8]) -> Option<Signature> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.sign(message)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use ring::signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, UnparsedPublicKey,
        VerificationAlgorithm,
    };
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    fn openssl(words: &str) -> PrivateKeyDer<'static> {
        let output = Command::new("openssl").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "{words}: {output:?}");
        PrivateKeyDer::from_pem_slice(&output.stdout).unwrap()
    }

    #[test]
    fn keys_of_all_kinds_sign_in_either_form_but_for_rsa() {
        let kinds: [(&str, SignatureScheme, &dyn VerificationAlgorithm); 5] = [
            (
                "ecparam -name prime256v1 -genkey -noout",
                SignatureScheme::EcdsaP256Sha256,
                &ECDSA_P256_SHA256_FIXED,
            ),
            (
                "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
                SignatureScheme::EcdsaP256Sha256,
                &ECDSA_P256_SHA256_FIXED,
            ),
            (
                "ecparam -name secp384r1 -genkey -noout",
                SignatureScheme::EcdsaP384Sha384,
                &ECDSA_P384_SHA384_FIXED,
            ),
            (
                "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384",
                SignatureScheme::EcdsaP384Sha384,
                &ECDSA_P384_SHA384_FIXED,
            ),
            ("genpkey -algorithm ed25519", SignatureScheme::Ed25519, &ED25519),
        ];
        for (words, scheme, algorithm) in kinds {
            let key = SealKey::of(&openssl(words)).expect(words);
            let public = key.pair.public_key().to_vec();
            let mut sealer = Sealer::new(Some(Arc::new(key)));
            let signature = sealer.sign(b"a seal").unwrap();
            assert_eq!(signature.scheme, scheme, "{words}");
            assert_eq!(signature.key, digest(&SHA256, &public).as_ref()[..8], "{words}");
            let public = UnparsedPublicKey::new(algorithm, public);
            assert_eq!(public.verify(b"a seal", &signature.bytes), Ok(()), "{words}");
            assert!(public.verify(b"another", &signature.bytes).is_err(), "{words}");
            sealer.renew(None);
            assert_eq!(sealer.sign(b"a seal"), None);
        }
        let rsa = openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048");
        assert!(SealKey::of(&rsa).is_none());
    }

    #[test]
    fn signing_takes_no_memory() {
        for words in [
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384",
            "genpkey -algorithm ed25519",
        ] {
            let mut sealer = Sealer::new(SealKey::of(&openssl(words)).map(Arc::new));
            let taken = allocation_counter::measure(|| {
                assert!(sealer.sign(&[7; 150]).is_some());
            });
            assert_eq!(taken.count_total, 0, "{words}: {taken:?}");
        }
    }
}
