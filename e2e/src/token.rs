//! Tokens of clients: JWTs that pageservers know by the public key in a Secret.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ring::signature::{Ed25519KeyPair, KeyPair as _};

/// What stands before the 32 bytes of an Ed25519 key in its `SubjectPublicKeyInfo` (RFC 8410 §4).
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The key of all stories: they share one pool, and each is a process of its own.
fn pair() -> Result<Ed25519KeyPair> {
    Ed25519KeyPair::from_seed_unchecked(&[42; 32]).ok().context("any 32 bytes are a seed")
}

/// The public key, as pageservers read it.
pub fn public_key() -> Result<String> {
    let key = [&SPKI_HEAD[..], pair()?.public_key().as_ref()].concat();
    Ok(format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64_STANDARD.encode(key)))
}

/// A token that opens one tenant.
pub fn of_tenant(id: &str) -> Result<String> {
    let part = |json: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
    let header = serde_json::json!({"alg": "EdDSA", "typ": "JWT"});
    let claims = serde_json::json!({"scope": "tenant", "tenant_id": id});
    let signed = format!("{}.{}", part(&header), part(&claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(pair()?.sign(signed.as_bytes()));
    Ok(format!("{signed}.{signature}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_three_parts_that_need_no_quoting() {
        let token = of_tenant("6f1c5c7b2e9d4f5f8a3f1f2c9f1d4e77").unwrap();
        assert_eq!(token.split('.').count(), 3);
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)), "{token}");
        assert!(public_key().unwrap().lines().nth(1).unwrap().starts_with("MCowBQYDK2VwAyEA"));
    }
}
