//! Tokens of clients, made as a control plane makes them: JWTs signed with Ed25519.

use std::fmt::Display;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ring::signature::{Ed25519KeyPair, KeyPair as _};

/// What stands before the 32 bytes of an Ed25519 key in its `SubjectPublicKeyInfo` (RFC 8410 §4).
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Who signs tokens.
#[derive(Debug)]
pub struct Signer(Ed25519KeyPair);

impl Signer {
    /// The same one for the same seed.
    pub fn new(seed: u8) -> Signer {
        Signer(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("any 32 bytes are a seed"))
    }

    /// The public key in PEM form, as pageservers read it.
    pub fn public_key(&self) -> String {
        let der = BASE64_STANDARD.encode([&SPKI_HEAD[..], self.0.public_key().as_ref()].concat());
        format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n")
    }

    /// A token with any header and claims, both JSON.
    pub fn signed(&self, header: &str, claims: &str) -> String {
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let signed = format!("{}.{}", encode(header.as_bytes()), encode(claims.as_bytes()));
        let signature = encode(self.0.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    }

    /// A token with these claims.
    pub fn token(&self, claims: &str) -> String {
        self.signed(r#"{"alg":"EdDSA","typ":"JWT"}"#, claims)
    }

    /// A token that opens one tenant.
    pub fn of_tenant(&self, tenant: impl Display) -> String {
        self.token(&format!(r#"{{"scope":"tenant","tenant_id":"{tenant}"}}"#))
    }
}
