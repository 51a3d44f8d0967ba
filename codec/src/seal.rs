//! What makes a stream's frames a chain: the seal of each generation, and its signature by the device.

use heapless::Vec;
use serde::{Deserialize, Serialize};

/// What a generation was. Its first frame has the seal of the one before, so that the seals of a
/// stream are a chain: who changes a frame has to change all that came after it. A run that ends in
/// order begins a last generation of each stream that has frames, for the seal of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The last generation before this one that has frames.
    pub generation: u32,
    /// SHA-256 of its frames, all of them, in order, back to back.
    pub digest: [u8; 32],
}

/// What stands before what is signed: a signature of a seal is good for nothing else.
const SEAL_CONTEXT: &[u8] = b"SysFlow Edge seal\0";
/// Longest agent id, bytes.
const AGENT_ID_BYTES_MAX: usize = 63;
/// Longest [`SealMessage`], bytes.
const SEAL_MESSAGE_BYTES_MAX: usize =
    SEAL_CONTEXT.len() + 16 + 16 + 1 + 4 + 32 + AGENT_ID_BYTES_MAX;

/// What is signed of a seal.
pub type SealMessage = Vec<u8, SEAL_MESSAGE_BYTES_MAX>;

impl Seal {
    /// What is signed: a context, boot id, run id, class, generation (little-endian), digest and
    /// agent id, back to back. `agent_id`, `boot_id` and `run_id` are those of the run's generation
    /// starts; none where the agent id is longer than 63 bytes.
    pub fn message(
        &self,
        agent_id: &str,
        boot_id: &[u8; 16],
        run_id: &[u8; 16],
        class: u8,
    ) -> Option<SealMessage> {
        let generation = self.generation.to_le_bytes();
        let class = [class];
        let parts: [&[u8]; 7] =
            [SEAL_CONTEXT, boot_id, run_id, &class, &generation, &self.digest, agent_id.as_bytes()];
        let mut message = SealMessage::new();
        parts.into_iter().try_for_each(|part| message.extend_from_slice(part)).ok()?;
        Some(message)
    }
}

/// How a seal is signed. Signatures are of fixed size: two numbers (r, s) of ECDSA back to back,
/// or what RFC 8032 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum SignatureScheme {
    /// ECDSA on P-256 with SHA-256, 64 bytes.
    EcdsaP256Sha256,
    /// ECDSA on P-384 with SHA-384, 96 bytes.
    EcdsaP384Sha384,
    /// Ed25519, 64 bytes.
    Ed25519,
}

/// Longest signature, bytes.
pub const SIGNATURE_BYTES_MAX: usize = 96;

/// A signature of [`Seal::message`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// How it is made.
    pub scheme: SignatureScheme,
    /// With which key: the first bytes of the SHA-256 of the public one, as certificates have it (the
    /// bits of `subjectPublicKey`).
    pub key: [u8; 8],
    /// Its bytes.
    pub bytes: Vec<u8, SIGNATURE_BYTES_MAX>,
}
