//! Tokens of clients: JWTs that pageservers know by the public key in a Secret.

use testkit::token::Signer;

/// Of all stories: they share one pool, and each is a process of its own.
fn signer() -> Signer {
    Signer::new(42)
}

/// The public key, as pageservers read it.
pub fn public_key() -> String {
    signer().public_key()
}

/// A token that opens one tenant.
pub fn of_tenant(id: &str) -> String {
    signer().of_tenant(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_three_parts_that_need_no_quoting() {
        let token = of_tenant("6f1c5c7b2e9d4f5f8a3f1f2c9f1d4e77");
        assert_eq!(token.split('.').count(), 3);
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)), "{token}");
        assert!(public_key().lines().nth(1).unwrap().starts_with("MCowBQYDK2VwAyEA"));
    }
}
